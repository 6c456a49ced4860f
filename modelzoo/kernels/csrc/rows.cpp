// Passes over activations [n, dim] that torch makes in two or three.

#include "units.h"

// sums [dim] = the sum over rows of x [n, dim]: a bias's gradient, in float32 whatever x is.
template <class T>
static void column_sums(int64_t n, int64_t dim, const T* x, float* sums, int threads) {
    constexpr int64_t strip = 8 * LANES;  // columns whose sums stay in registers
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t c = 0; c < dim; c += strip) {
        if (c + strip > dim) {
            for (int64_t j = c; j < dim; j++) {
                float sum = 0;
                for (int64_t t = 0; t < n; t++) sum += widen1(x[t * dim + j]);
                sums[j] = sum;
            }
            continue;
        }
        V sum[8] = {};
        for (int64_t t = 0; t < n; t++)
            for (int j = 0; j < 8; j++) sum[j] += widen(x + t * dim + c + j * LANES);
        for (int j = 0; j < 8; j++) narrow(sums + c + j * LANES, sum[j]);
    }
}

extern "C" void rows_sum(int bf16, int threads, int64_t n, int64_t dim, const void* x, float* sums) {
    if (bf16) column_sums(n, dim, (const uint16_t*)x, sums, threads);
    else column_sums(n, dim, (const float*)x, sums, threads);
}
