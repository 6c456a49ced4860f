// Products with an unstructured sparse weight: every live weight meets a vector of tokens.
//
// Activations are transposed, so that the tokens of one input are neighbours. What a live weight costs is the loads of
// those tokens, so they must come from the first-level cache: inputs are taken some at a time (a slab), and live weights
// are listed slab by slab. In float32 a load feeds one multiply-add. In bfloat16 it holds twice the tokens, and two
// inputs are interleaved (vpunpck) for vdpbf16ps to sum two products a lane.
// Inputs and outputs are multiples of 32. One thread sums each result in a fixed order.

#include <unistd.h>
#include "pack.h"

constexpr int W = 4 * LANES;                // tokens at a time
constexpr int CHAINS = LANES == 16 ? 4 : 2;  // independent sums, to hide the latency of additions

// Inputs of a slab: what fits five sixths of the first-level cache at `bytes` each, an even number.
static int64_t slab(int64_t bytes) {
    static const long size = sysconf(_SC_LEVEL1_DCACHE_SIZE);
    return std::max<int64_t>((size > 0 ? size : 32 << 10) / 6 * 5 / bytes / 2 * 2, 2);
}

// A live weight (or two, to be summed together) and where its inputs stand in the slab, in elements.
template <class K>
struct Entry {
    uint32_t unit;
    int32_t at[K::per];
};

// The live weights of each output (or with `transposed` of each input), slab by slab: those of row r in slab s are
// entries[begin[s * rows + r]] to entries[begin[s * rows + r + 1]].
template <class K>
struct Lists {
    int64_t rows, width, slabs;  // width: inputs of a slab
    int64_t* begin;
    const Entry<K>* entries;
    Lists(const Weight& w, bool transposed, int threads)
        : rows(transposed ? w.in : w.out), width(slab(W * sizeof(typename K::io))),
          slabs(((transposed ? w.out : w.in) + width - 1) / width) {
        const int32_t *ptr = transposed ? w.col_ptr : w.row_ptr, *at = transposed ? w.col_rows : w.cols;
        begin = (int64_t*)scratch<1>((slabs * rows + 1) * 2);
        std::fill(begin, begin + slabs * rows + 1, 0);
#pragma omp parallel for num_threads(threads)
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t i = ptr[r]; i < ptr[r + 1]; i++) begin[at[i] / width * rows + r + 1]++;
            for (int64_t s = 0; s < slabs; s++) begin[s * rows + r + 1] = (begin[s * rows + r + 1] + K::per - 1) / K::per;
        }
        for (int64_t i = 0; i < slabs * rows; i++) begin[i + 1] += begin[i];
        auto to = (Entry<K>*)scratch<2>(begin[slabs * rows] * (sizeof(Entry<K>) / 4));
        entries = to;
#pragma omp parallel for num_threads(threads)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = ptr[r], end = ptr[r + 1]; i < end;) {
                int64_t s = at[i] / width, first = s * width;
                auto value = [&](int64_t j) { return w.values[transposed ? w.by_column[j] : j]; };
                for (Entry<K>* e = to + begin[s * rows + r]; i < end && at[i] < first + width; i += K::per, e++) {
                    bool both = K::per == 2 && i + 1 < end && at[i + 1] < first + width;
                    e->unit = K::unit_of(value(i), both ? value(i + 1) : 0.0f);
                    e->at[0] = (at[i] - first) * W;
                    if (K::per == 2) e->at[K::per - 1] = both ? (at[i + 1] - first) * W : e->at[0];
                    if (K::per == 2 && !both) i--;
                }
            }
    }
};

// W tokens: sums += unit * tokens of its inputs, in an order of K's own that `settle` undoes.
template <class K>
struct Sums;

template <>
struct Sums<Float> {
    static constexpr int vectors = W / LANES;
    static void add(V* acc, const Entry<Float>& e, const float* x) {
        for (int j = 0; j < vectors; j++) acc[j] = Float::madd(acc[j], e.unit, load(x + e.at[0] + j * LANES));
    }
    static void settle(V*) {}
};

#ifdef __AVX512BF16__
template <>
struct Sums<Pair> {
    static constexpr int vectors = W / LANES;
    static void add(V* acc, const Entry<Pair>& e, const uint16_t* x) {
        for (int j = 0; j < vectors; j += 2) {
            __m512i a = (__m512i)load(x + e.at[0] + j * LANES), b = (__m512i)load(x + e.at[1] + j * LANES);
            acc[j] = Pair::madd(acc[j], e.unit, (V)_mm512_unpacklo_epi16(a, b));
            acc[j + 1] = Pair::madd(acc[j + 1], e.unit, (V)_mm512_unpackhi_epi16(a, b));
        }
    }
    static void settle(V* acc) {  // lane by lane of 128 bits, tokens of two neighbours alternate
        for (int j = 0; j < vectors; j += 2) {
            __m512d lo = (__m512d)acc[j], hi = (__m512d)acc[j + 1];
            acc[j] = (V)_mm512_permutex2var_pd(lo, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), hi);
            acc[j + 1] = (V)_mm512_permutex2var_pd(lo, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), hi);
        }
    }
};
#endif

// sums [W] += the products of some live weights of one output; x: the slab, [width][W].
template <class K>
static inline void sum_row(const Entry<K>* e, const Entry<K>* end, const typename K::io* x, float* sums) {
    constexpr int vectors = Sums<K>::vectors;
    V acc[CHAINS][vectors] = {};
    const Entry<K>* whole = e + (end - e) / CHAINS * CHAINS;
    for (; e < whole; e += CHAINS)
#pragma GCC unroll 8
        for (int c = 0; c < CHAINS; c++) Sums<K>::add(acc[c], e[c], x);
#pragma GCC unroll 8
    for (int j = 0; j < vectors; j++)
#pragma GCC unroll 8
        for (int c = 1; c < CHAINS; c++) acc[0][j] += acc[c][j];
    for (; e < end; e++) Sums<K>::add(acc[0], *e, x);
    Sums<K>::settle(acc[0]);
#pragma GCC unroll 8
    for (int j = 0; j < vectors; j++) Float::store(sums + j * LANES, load(sums + j * LANES) + acc[0][j]);
}

// y [n, w.rows] = bias + x W^T, x [n, dim].
template <class K>
static void gather(const Lists<K>& w, int64_t dim, int64_t n, const typename K::io* x, const float* bias,
                   typename K::io* y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        auto columns = (typename K::io*)scratch<0>(W * dim / K::per);
        auto sums = (float*)scratch<3>(W * w.rows);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < n; t += W) {
            by_window<K, W>(x + t * dim, n - t, dim, 0, columns);
            for (int64_t o = 0; o < w.rows; o++) std::fill(sums + o * W, sums + o * W + W, bias ? bias[o] : 0.0f);
            for (int64_t s = 0; s < w.slabs; s++)
                for (int64_t o = 0; o < w.rows; o++) {
                    const int64_t* at = w.begin + s * w.rows + o;
                    sum_row<K>(w.entries + at[0], w.entries + at[1], columns + s * w.width * W, sums + o * W);
                }
            store_columns<K, W>(sums, w.rows, n - t, y + t * w.rows);
        }
    }
}

// Lane i: the sum of the lanes of s[i].
#ifdef __AVX512F__
static inline V sum_each(const V* s) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_unpacklo_ps((__m512)s[2 * i], (__m512)s[2 * i + 1]) +
               _mm512_unpackhi_ps((__m512)s[2 * i], (__m512)s[2 * i + 1]);
    for (int i = 0; i < 4; i++) {
        __m512d x = (__m512d)a[2 * i], y = (__m512d)a[2 * i + 1];
        b[i] = (__m512)_mm512_unpacklo_pd(x, y) + (__m512)_mm512_unpackhi_pd(x, y);
    }
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88) + _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd);
    return (V)(_mm512_shuffle_f32x4(c[0], c[1], 0x88) + _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}
#elif defined(__AVX2__)
static inline V sum_each(const V* s) {
    auto pair = [](V a, V b) { return _mm256_hadd_ps((__m256)a, (__m256)b); };
    __m256 lo = _mm256_hadd_ps(pair(s[0], s[1]), pair(s[2], s[3]));
    __m256 hi = _mm256_hadd_ps(pair(s[4], s[5]), pair(s[6], s[7]));
    return (V)(_mm256_permute2f128_ps(lo, hi, 0x20) + _mm256_permute2f128_ps(lo, hi, 0x31));
}
#else
static inline V sum_each(const V* s) {
    V sums{};
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) sums[i] += s[i][j];
    return sums;
}
#endif

constexpr int VECTORS = 64 / LANES;  // of tokens to each sum over lanes

// dot of VECTORS vectors of dy, in registers, and of x: lane sums.
static inline V dot(const V* dy, const float* x, Float) {
    V s = dy[0] * load(x);
    for (int j = 1; j < VECTORS; j++) s += dy[j] * load(x + j * LANES);
    return s;
}
#ifdef __AVX512BF16__
static inline V dot(const V* dy, const uint16_t* x, Pair) {
    V s{};
    for (int j = 0; j < VECTORS; j++) s = _mm512_dpbf16_ps(s, (__m512bh)dy[j], (__m512bh)load(x + j * 32));
    return s;
}
#endif

// dw[i] += sum over T tokens of dy * x[at[i]], for up to M live weights of one output.
template <class K, int T, int M>
static inline void sample_some(const V* dy, const int32_t* at, const typename K::io* x, int64_t count, float* dw) {
    V s[LANES] = {};
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) s[i] = dot(dy, x + (int64_t)at[i < count ? i : 0] * T, K());
    V sums = sum_each(s);
    if (count >= LANES) Float::store(dw, load(dw) + sums);
    else
        for (int i = 0; i < count; i++) dw[i] += sums[i];
}

// dvalues [nnz] = dy^T x on live weights.
template <class K>
static void sampled(const Weight& w, int64_t n, const typename K::io* dy, const typename K::io* x, float* dvalues,
                    int threads) {
    constexpr int T = 64 * K::per;  // tokens at a time
    constexpr int64_t SHARE = 64;   // outputs of a task
    const int64_t width = slab(T * sizeof(typename K::io)), slabs = (w.in + width - 1) / width;
    int64_t windows = (n + T - 1) / T;
    auto columns = (typename K::io*)scratch<0>(windows * T * w.in / K::per);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < windows; t++) by_window<K, T>(x, n, w.in, t, columns);
        auto gradients = (typename K::io*)scratch<1>(SHARE * T / K::per);
        auto starts = (int32_t*)scratch<2>(SHARE * (slabs + 1));  // of each output's live weights, slab by slab
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < w.out; first += SHARE) {
            int64_t count = std::min(w.out - first, SHARE);
            for (int64_t o = 0; o < count; o++) {
                int64_t k = w.row_ptr[first + o];
                for (int64_t s = 0; s <= slabs; s++) {
                    while (k < w.row_ptr[first + o + 1] && w.cols[k] < s * width) k++;
                    starts[o * (slabs + 1) + s] = k;
                }
            }
            memset(dvalues + w.row_ptr[first], 0, (w.row_ptr[first + count] - w.row_ptr[first]) * 4);
            for (int64_t t = 0; t < windows; t++) {
                const typename K::io* from = columns + t * w.in * T;
                for (int64_t h = 0; h < T; h += 32)
                    by_token<K>(dy + t * T * w.out + first, n - t * T, w.out, h, count, T, gradients);
                for (int64_t s = 0; s < slabs; s++)
                    for (int64_t o = 0; o < count; o++) {
                        int64_t k = starts[o * (slabs + 1) + s], end = starts[o * (slabs + 1) + s + 1];
                        V tokens[VECTORS];
                        for (int j = 0; j < VECTORS; j++)
                            tokens[j] = load((uint32_t*)(gradients + o * T) + j * LANES);
                        for (; k + LANES / 2 < end; k += LANES)
                            sample_some<K, T, LANES>(tokens, w.cols + k, from, end - k, dvalues + k);
                        if (k < end) sample_some<K, T, LANES / 2>(tokens, w.cols + k, from, end - k, dvalues + k);
                    }
            }
        }
    }
}

// The whole weight [out, in] in the activations' dtype, 0 where dead.
template <class K>
static void unpack(const Weight& w, typename K::io* dense, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t o = 0; o < w.out; o++) {
        memset(dense + o * w.in, 0, w.in * sizeof *dense);
        for (int64_t k = w.row_ptr[o]; k < w.row_ptr[o + 1]; k++) K::narrow_all(w.values + k, 1, dense + o * w.in + w.cols[k]);
    }
}

// The live weights of a dense [out, in].
template <class K>
static void pack(const Weight& w, const typename K::io* dense, float* values, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t o = 0; o < w.out; o++)
        for (int64_t k = w.row_ptr[o]; k < w.row_ptr[o + 1]; k++) values[k] = widen1(dense[o * w.in + w.cols[k]]);
}

extern "C" {

void single_forward(const Weight* w, int bf16, int threads, int64_t n, const void* x, const float* bias, void* y) {
    DISPATCH((gather<K>(Lists<K>(*w, false, threads), w->in, n, (const io*)x, bias, (io*)y, threads)))
}

void single_backward_x(const Weight* w, int bf16, int threads, int64_t n, const void* dy, void* dx) {
    DISPATCH((gather<K>(Lists<K>(*w, true, threads), w->out, n, (const io*)dy, nullptr, (io*)dx, threads)))
}

void single_backward_w(const Weight* w, int bf16, int threads, int64_t n, const void* dy, const void* x,
                       float* dvalues) {
    DISPATCH((sampled<K>(*w, n, (const io*)dy, (const io*)x, dvalues, threads)))
}

void single_unpack(const Weight* w, int bf16, int threads, void* dense) {
    DISPATCH((unpack<K>(*w, (io*)dense, threads)))
}

void single_pack(const Weight* w, int bf16, int threads, const void* dense, float* values) {
    DISPATCH((pack<K>(*w, (const io*)dense, values, threads)))
}
}
