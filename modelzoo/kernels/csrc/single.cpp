// Products with an unstructured sparse weight in float32: every live weight meets a vector of tokens.
//
// Activations are transposed, so that the tokens of one input are neighbours. Per live weight there is one broadcast
// and, for each vector of tokens, one load and one multiply-add: the second-level cache sets the pace, not arithmetic.
// Inputs and outputs are multiples of 16. One thread sums each result in a fixed order.

#include "pack.h"

constexpr int WINDOW = 48;  // tokens whose sums stand in registers
constexpr int VECTORS = WINDOW / LANES;

// sum over i < count of w[i] * x[at[i]], for WINDOW tokens. x: [in][CHUNK].
static inline void gather_sum(const float* w, const int32_t* at, int64_t count, const float* x, float start, float* to) {
    V even[VECTORS], odd[VECTORS];
    for (int j = 0; j < VECTORS; j++) even[j] = V{} + start, odd[j] = V{};
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
        const float *a = x + (int64_t)at[i] * CHUNK, *b = x + (int64_t)at[i + 1] * CHUNK;
        for (int j = 0; j < VECTORS; j++) even[j] += w[i] * load(a + j * LANES);
        for (int j = 0; j < VECTORS; j++) odd[j] += w[i + 1] * load(b + j * LANES);
    }
    for (; i < count; i++)
        for (int j = 0; j < VECTORS; j++) even[j] += w[i] * load(x + (int64_t)at[i] * CHUNK + j * LANES);
    for (int j = 0; j < VECTORS; j++) Float::store(to + j * LANES, even[j] + odd[j]);
}

// y [n, result] = bias + x W^T for rows of weights `w` that meet inputs `at`; x [n, dim].
static void gather_product(const int32_t* ptr, const int32_t* at, const float* w, int64_t dim, int64_t result, int64_t n,
                           const float* x, const float* bias, float* y, int threads) {
    int64_t chunks = (n + CHUNK - 1) / CHUNK, windows = (n + WINDOW - 1) / WINDOW, blocks = result / 16;
    uint32_t* columns = scratch<0>(chunks * CHUNK * dim);
    int64_t share = 16;  // blocks of 16 outputs to a task
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < chunks; i++) by_unit<Float>(x, n, dim, i, columns);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t t = 0; t < windows; t++)
            for (int64_t first = 0; first < blocks; first += share)
                for (int64_t o = first * 16; o < (first + share < blocks ? first + share : blocks) * 16; o += 16) {
                    const float* from = (const float*)columns + t * WINDOW / CHUNK * dim * CHUNK + t * WINDOW % CHUNK;
                    float sums[16 * WINDOW], rows[16 * 16];
                    for (int r = 0; r < 16; r++)
                        gather_sum(w + ptr[o + r], at + ptr[o + r], ptr[o + r + 1] - ptr[o + r], from,
                                   bias ? bias[o + r] : 0.0f, sums + r * WINDOW);
                    for (int64_t h = 0; h < WINDOW && t * WINDOW + h < n; h += 16) {
                        transpose16((const uint32_t*)sums + h, WINDOW, 16, (uint32_t*)rows, 16);
                        for (int64_t r = 0; r < 16 && t * WINDOW + h + r < n; r++)
                            memcpy(y + (t * WINDOW + h + r) * result + o, rows + r * 16, 64);
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

// dw[i] += sum over a chunk's tokens of dy * x[at[i]], for 16 live weights of one output.
static inline void sample16(const V* dy, const int32_t* at, const float* x, int64_t count, float* dw) {
    V s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        const float* from = x + (int64_t)at[i < count ? i : 0] * CHUNK;
        s[i] = dy[0] * load(from);
        for (int j = 1; j < CHUNK / LANES; j++) s[i] += dy[j] * load(from + j * LANES);
    }
#ifdef __AVX512F__
    __mmask16 valid = count < 16 ? (1 << count) - 1 : 0xffff;
    _mm512_mask_storeu_ps(dw, valid, _mm512_maskz_loadu_ps(valid, dw) + sum_each((const __m512*)s));
#else
    for (int64_t i = 0; i < count && i < 16; i++)
        for (int j = 0; j < LANES; j++) dw[i] += s[i][j];
#endif
}

extern "C" {

void single_forward(const Weight* w, int, int threads, int64_t n, const float* x, const float* bias, float* y) {
    gather_product(w->row_ptr, w->cols, w->values, w->in, w->out, n, x, bias, y, threads);
}

void single_backward_x(const Weight* w, int, int threads, int64_t n, const float* dy, float* dx) {
    int64_t nnz = w->row_ptr[w->out];
    float* values = (float*)scratch<1>(nnz);
    int32_t* rows = (int32_t*)scratch<2>(nnz);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < nnz; i++) values[i] = w->values[w->by_column[i]], rows[i] = w->rows[w->by_column[i]];
    gather_product(w->col_ptr, rows, values, w->out, w->in, n, dy, nullptr, dx, threads);
}

void single_backward_w(const Weight* w, int, int threads, int64_t n, const float* dy, const float* x, float* dvalues) {
    int64_t chunks = (n + CHUNK - 1) / CHUNK;
    uint32_t* columns_x = scratch<0>(chunks * CHUNK * w->in);
    uint32_t* columns_dy = scratch<1>(chunks * CHUNK * w->out);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < chunks; i++) by_unit<Float>(x, n, w->in, i, columns_x);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < chunks; i++) by_unit<Float>(dy, n, w->out, i, columns_dy);
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < w->out; first += 64) {
            int64_t last = first + 64 < w->out ? first + 64 : w->out;
            memset(dvalues + w->row_ptr[first], 0, (w->row_ptr[last] - w->row_ptr[first]) * 4);
            for (int64_t i = 0; i < chunks; i++)
                for (int64_t o = first; o < last; o++) {
                    const float* from = (const float*)columns_dy + (i * w->out + o) * CHUNK;
                    V tokens[CHUNK / LANES];
                    for (int j = 0; j < CHUNK / LANES; j++) tokens[j] = load(from + j * LANES);
                    for (int64_t k = w->row_ptr[o]; k < w->row_ptr[o + 1]; k += 16)
                        sample16(tokens, w->cols + k, (const float*)columns_x + i * w->in * CHUNK,
                                 w->row_ptr[o + 1] - k, dvalues + k);
                }
        }
    }
}
}
