// Runs the kernels of one source (KERNEL, with NAME as in its functions' names) on cases from stdin, results to stdout.
// Numbers are in the machine's order; both AArch64 and x86-64 are little-endian.

#include KERNEL
#include <cstdio>
#include <vector>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define CALL(function) JOIN(NAME, function)

template <class T>
static std::vector<T> read(int64_t count) {
    std::vector<T> values(count);
    if ((int64_t)fread(values.data(), sizeof(T), count, stdin) != count) {
        fprintf(stderr, "a case is cut short\n");
        exit(3);
    }
    return values;
}

// Room for a result, NaN until it is written, and a margin that has to stay as it is.
template <class T>
struct Result {
    static constexpr int64_t MARGIN = 256;
    std::vector<T> values;
    Result(int64_t count) : values(count + MARGIN) { memset(values.data(), 0xff, values.size() * sizeof(T)); }
    Result(const std::vector<T>& from) : Result(from.size()) { std::copy(from.begin(), from.end(), values.begin()); }
    T* data() { return values.data(); }
    void write(const char* name) {
        int64_t count = values.size() - MARGIN;
        auto margin = (const unsigned char*)(values.data() + count);
        for (int64_t i = 0; i < MARGIN * (int64_t)sizeof(T); i++)
            if (margin[i] != 0xff) {
                fprintf(stderr, "%s: written beyond its end\n", name);
                exit(4);
            }
        fwrite(values.data(), sizeof(T), count, stdout);
    }
};

#if defined(OF_WEIGHTS)
static void run(const std::vector<int64_t>& sides) {
    int64_t out = sides[0], in = sides[1], R = sides[2], C = sides[3], nnz = sides[4], n = sides[5], threads = sides[6];
    auto row_ptr = read<int32_t>(out / R + 1), cols = read<int32_t>(nnz), col_ptr = read<int32_t>(in / C + 1);
    auto col_rows = read<int32_t>(nnz), by_column = read<int32_t>(nnz);
    auto values = read<float>(nnz * R * C), x = read<float>(n * in), dy = read<float>(n * out), bias = read<float>(out);
    Weight w{out, in, R, C, row_ptr.data(), cols.data(), col_ptr.data(), col_rows.data(), by_column.data(), values.data()};
    Result<float> y(n * out), bare(n * out), dx(n * in), dvalues(nnz * R * C);
    CALL(_forward)(&w, 0, threads, n, x.data(), bias.data(), y.data());
    CALL(_forward)(&w, 0, threads, n, x.data(), nullptr, bare.data());
    CALL(_backward_x)(&w, 0, threads, n, dy.data(), dx.data());
    CALL(_backward_w)(&w, 0, threads, n, dy.data(), x.data(), dvalues.data());
    y.write("y"), bare.write("y without bias"), dx.write("dx"), dvalues.write("dvalues");
}
#elif defined(OF_LOGITS)
template <class T>
static void run_in(int64_t n, int64_t vocab, int64_t threads) {
    auto logits = read<T>(n * vocab);
    auto labels = read<int64_t>(n);
    Result<T> kept(logits), gradient(logits);
    Result<float> losses(n), again(n);
    softmax_cross_entropy(sizeof(T) == 2, threads, n, vocab, kept.data(), labels.data(), losses.data(), 0);
    softmax_cross_entropy(sizeof(T) == 2, threads, n, vocab, gradient.data(), labels.data(), again.data(), 1);
    losses.write("losses"), again.write("losses"), kept.write("logits"), gradient.write("gradient");
}
static void run(const std::vector<int64_t>& sides) {
    if (sides[3]) run_in<uint16_t>(sides[0], sides[1], sides[2]);
    else run_in<float>(sides[0], sides[1], sides[2]);
}
#else
template <class T>
static void run_in(int64_t n, int64_t dim, int64_t threads) {
    auto x = read<T>(n * dim);
    Result<float> sums(dim);
    rows_sum(sizeof(T) == 2, threads, n, dim, x.data(), sums.data());
    sums.write("sums");
}
static void run(const std::vector<int64_t>& sides) {
    if (sides[3]) run_in<uint16_t>(sides[0], sides[1], sides[2]);
    else run_in<float>(sides[0], sides[1], sides[2]);
}
#endif

int main() {
    int64_t sides[8];
    while (fread(sides, sizeof sides, 1, stdin) == 1) run(std::vector<int64_t>(sides, sides + 8));
}
