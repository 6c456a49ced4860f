// Products with an unstructured sparse weight: every live weight meets a vector of tokens.
//
// Activations are transposed, so that the tokens of one input are neighbours. What a live weight costs is one load of
// those tokens: the caches set the pace, not arithmetic. In float32 a load feeds one multiply-add. In bfloat16 it holds
// twice the tokens, and two inputs are interleaved (vpunpck) for vdpbf16ps to sum two products a lane.
// Inputs and outputs are multiples of 32. One thread sums each result in a fixed order.

#include "pack.h"

constexpr int CHAINS = 4;  // independent sums, to hide the latency of additions

// The live weights of each output (or with `transposed` of each input), `per` to a unit, and the inputs they meet.
template <class K>
struct Lists {
    const int32_t *ptr, *at;
    std::vector<int64_t> begin;  // of units
    const uint32_t* units;
    Lists(const Weight& w, bool transposed, int threads)
        : ptr(transposed ? w.col_ptr : w.row_ptr), at(transposed ? w.col_rows : w.cols),
          begin(starts(ptr, transposed ? w.in : w.out, 1, 1, K::per)) {
        int64_t rows = begin.size() - 1, nnz = ptr[rows];
        auto narrow = (typename K::io*)scratch<1>(nnz / K::per + 1);  // the weights as K's, in their own order
        uint32_t* to = scratch<2>(begin.back());
        units = to;
#pragma omp parallel for num_threads(threads) if (K::per == 2)
        for (int64_t i = 0; i < nnz; i += 1024) K::narrow_all(w.values + i, nnz - i < 1024 ? nnz - i : 1024, narrow + i);
#pragma omp parallel for num_threads(threads)
        for (int64_t r = 0; r < rows; r++) {
            auto unit = (typename K::io*)(to + begin[r]);
            if (!transposed) memcpy(unit, narrow + ptr[r], (ptr[r + 1] - ptr[r]) * sizeof *unit);
            else for (int64_t i = ptr[r]; i < ptr[r + 1]; i++) unit[i - ptr[r]] = narrow[w.by_column[i]];
            if (K::per == 2 && (ptr[r + 1] - ptr[r]) % 2) unit[ptr[r + 1] - ptr[r]] = 0;
        }
    }
};

// 32 tokens: sums += unit * tokens of its inputs, in an order of K's own that `settle` undoes.
template <class K>
struct Sums;

template <>
struct Sums<Float> {
    static constexpr int vectors = 32 / LANES;
    static void add(V* acc, uint32_t unit, const float* x, const int32_t* at, int64_t stride) {
        for (int j = 0; j < vectors; j++) acc[j] = Float::madd(acc[j], unit, load(x + at[0] * stride + j * LANES));
    }
    static void settle(V*) {}
};

#ifdef __AVX512BF16__
template <>
struct Sums<Pair> {
    static constexpr int vectors = 2;
    static void add(V* acc, uint32_t unit, const uint16_t* x, const int32_t* at, int64_t stride) {
        __m512i a = (__m512i)load(x + at[0] * stride), b = (__m512i)load(x + at[1] * stride);
        acc[0] = Pair::madd(acc[0], unit, (V)_mm512_unpacklo_epi16(a, b));
        acc[1] = Pair::madd(acc[1], unit, (V)_mm512_unpackhi_epi16(a, b));
    }
    static void settle(V* acc) {  // lane by lane of 128 bits, tokens of acc[0] and acc[1] alternate
        __m512d lo = (__m512d)acc[0], hi = (__m512d)acc[1];
        acc[0] = (V)_mm512_permutex2var_pd(lo, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), hi);
        acc[1] = (V)_mm512_permutex2var_pd(lo, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), hi);
    }
};
#endif

constexpr int W = 32;  // tokens at a time: a line of the cache or two for each input

// to [W] = start + sum over the live weights of output o. x: [dim][W].
template <class K>
static inline void sum_row(const Lists<K>& w, int64_t o, const typename K::io* x, float start, float* to) {
    constexpr int vectors = Sums<K>::vectors;
    const int32_t *at = w.at + w.ptr[o], *end = w.at + w.ptr[o + 1];
    const uint32_t* unit = w.units + w.begin[o];
    V acc[CHAINS][vectors] = {};
    for (; at + CHAINS * K::per <= end; at += CHAINS * K::per, unit += CHAINS)
#pragma GCC unroll 8
        for (int c = 0; c < CHAINS; c++) Sums<K>::add(acc[c], unit[c], x, at + c * K::per, W);
    for (; at < end; at += K::per, unit++) {
        int32_t last[2] = {at[0], at + 1 < end ? at[1] : at[0]};
        Sums<K>::add(acc[0], *unit, x, last, W);
    }
    for (int j = 0; j < vectors; j++) {
        for (int c = 1; c < CHAINS; c++) acc[0][j] += acc[c][j];
        acc[0][j] += start;
    }
    Sums<K>::settle(acc[0]);
    for (int j = 0; j < vectors; j++) Float::store(to + j * LANES, acc[0][j]);
}

// y [n, result] = bias + x W^T, x [n, dim]; `w` lists the live weights of each output.
template <class K>
static void gather(const Lists<K>& w, int64_t dim, int64_t result, int64_t n, const typename K::io* x,
                   const float* bias, typename K::io* y, int threads) {
    int64_t windows = (n + W - 1) / W;
    constexpr int64_t share = 256;  // outputs to a task
    auto columns = (typename K::io*)scratch<0>(windows * W * dim / K::per);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < windows; t++) by_window<K, W>(x, n, dim, t, columns);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t t = 0; t < windows; t++)
            for (int64_t first = 0; first < result; first += share)
                for (int64_t o = first; o < result && o < first + share; o += 16) {
                    float sums[16 * W], rows[16 * 16];
                    for (int r = 0; r < 16; r++)
                        sum_row(w, o + r, columns + t * dim * W, bias ? bias[o + r] : 0.0f, sums + r * W);
                    for (int64_t h = t * W; h < (t + 1) * W && h < n; h += 16) {
                        transpose16((const uint32_t*)sums + h % W, W, 16, (uint32_t*)rows, 16);
                        for (int64_t r = 0; r < 16 && h + r < n; r++)
                            for (int j = 0; j < 16; j += LANES)
                                K::store(y + (h + r) * result + o + j, load(rows + r * 16 + j));
                    }
                }
    }
}

#ifdef __AVX512F__
// Lane i: the sum of the lanes of s[i].
static inline __m512 sum_each(const __m512* s) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_unpacklo_ps(s[2 * i], s[2 * i + 1]) + _mm512_unpackhi_ps(s[2 * i], s[2 * i + 1]);
    for (int i = 0; i < 4; i++) {
        __m512d x = (__m512d)a[2 * i], y = (__m512d)a[2 * i + 1];
        b[i] = (__m512)_mm512_unpacklo_pd(x, y) + (__m512)_mm512_unpackhi_pd(x, y);
    }
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88) + _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd);
    return _mm512_shuffle_f32x4(c[0], c[1], 0x88) + _mm512_shuffle_f32x4(c[0], c[1], 0xdd);
}
#endif

// dot of `vectors` vectors of dy, in registers, and of x: lane sums.
static inline V dot(const V* dy, const float* x, int vectors, Float) {
    V s = dy[0] * load(x);
    for (int j = 1; j < vectors; j++) s += dy[j] * load(x + j * LANES);
    return s;
}
#ifdef __AVX512BF16__
static inline V dot(const V* dy, const uint16_t* x, int vectors, Pair) {
    V s{};
    for (int j = 0; j < vectors; j++) s = _mm512_dpbf16_ps(s, (__m512bh)dy[j], (__m512bh)load(x + j * 32));
    return s;
}
#endif

// dw[i] += sum over T tokens of dy * x[at[i]], for up to 16 live weights of one output.
template <class K, int T>
static inline void sample16(const V* dy, const int32_t* at, const typename K::io* x, int64_t count, float* dw) {
    V s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        s[i] = dot(dy, x + (int64_t)at[i < count ? i : 0] * T, T / K::per / LANES, K());
#ifdef __AVX512F__
    __mmask16 valid = count < 16 ? (1 << count) - 1 : 0xffff;
    _mm512_mask_storeu_ps(dw, valid, _mm512_maskz_loadu_ps(valid, dw) + sum_each((const __m512*)s));
#else
    for (int64_t i = 0; i < count && i < 16; i++)
        for (int j = 0; j < LANES; j++) dw[i] += s[i][j];
#endif
}

// dvalues [nnz] = dy^T x on live weights.
template <class K>
static void sampled(const Weight& w, int64_t n, const typename K::io* dy, const typename K::io* x, float* dvalues,
                    int threads) {
    constexpr int T = 64 * K::per, vectors = 64 / LANES;  // tokens to each sum over lanes
    int64_t windows = (n + T - 1) / T;
    auto columns_x = (typename K::io*)scratch<0>(windows * T * w.in / K::per);
    auto columns_dy = (typename K::io*)scratch<1>(windows * T * w.out / K::per);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic) nowait
        for (int64_t t = 0; t < windows; t++) by_window<K, T>(x, n, w.in, t, columns_x);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < windows; t++) by_window<K, T>(dy, n, w.out, t, columns_dy);
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < w.out; first += 64) {
            int64_t last = first + 64 < w.out ? first + 64 : w.out;
            memset(dvalues + w.row_ptr[first], 0, (w.row_ptr[last] - w.row_ptr[first]) * 4);
            for (int64_t t = 0; t < windows; t++)
                for (int64_t o = first; o < last; o++) {
                    V tokens[vectors];
                    for (int j = 0; j < vectors; j++)
                        tokens[j] = load((uint32_t*)(columns_dy + (t * w.out + o) * T) + j * LANES);
                    for (int64_t k = w.row_ptr[o]; k < w.row_ptr[o + 1]; k += 16)
                        sample16<K, T>(tokens, w.cols + k, columns_x + t * w.in * T, w.row_ptr[o + 1] - k, dvalues + k);
                }
        }
    }
}

extern "C" {

void single_forward(const Weight* w, int bf16, int threads, int64_t n, const void* x, const float* bias, void* y) {
    DISPATCH((gather<K>(Lists<K>(*w, false, threads), w->in, w->out, n, (const io*)x, bias, (io*)y, threads)))
}

void single_backward_x(const Weight* w, int bf16, int threads, int64_t n, const void* dy, void* dx) {
    DISPATCH((gather<K>(Lists<K>(*w, true, threads), w->out, w->in, n, (const io*)dy, nullptr, (io*)dx, threads)))
}

void single_backward_w(const Weight* w, int bf16, int threads, int64_t n, const void* dy, const void* x,
                       float* dvalues) {
    DISPATCH((sampled<K>(*w, n, (const io*)dy, (const io*)x, dvalues, threads)))
}
}
