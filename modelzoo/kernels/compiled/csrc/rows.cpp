// Passes over activations [n, dim] that torch makes in two or three.

#include <vector>
#include "units.h"

// sums [dim] = the sum over rows of x [n, dim]: a bias's gradient, in float32 whatever x is.
template <class T>
static void column_sums(int64_t n, int64_t dim, const T* x, float* sums, int threads) {
    constexpr int64_t strip = 8 * LANES;  // columns whose sums stay in registers
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (n * dim > 1 << 20)
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

// x [n] = +0 where keep is 0 (it is -1 elsewhere); the sum of squares of what is left, in an order that does not depend
// on the number of threads.
static double zero_dead(int64_t n, float* x, const int8_t* keep, int threads) {
    constexpr int64_t piece = 1 << 14;
    int64_t pieces = (n + piece - 1) / piece;
    std::vector<double> squares(pieces);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < pieces; p++) {
        int64_t i = p * piece, end = std::min(n, i + piece);
        V sums[4] = {};
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            for (int j = 0; j < 4; j++) {
                typedef int8_t B __attribute__((vector_size(LANES)));
                typedef int32_t I __attribute__((vector_size(LANES * 4)));
                B bytes;
                memcpy(&bytes, keep + i + j * LANES, sizeof bytes);
                V left = (V)((I)load(x + i + j * LANES) & __builtin_convertvector(bytes, I));
                narrow(x + i + j * LANES, left);
                sums[j] += left * left;
            }
        V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int j = 0; j < LANES; j++) squares[p] += sum[j];
        for (; i < end; i++) {
            x[i] = keep[i] ? x[i] : 0.0f;
            squares[p] += (double)x[i] * x[i];
        }
    }
    double square = 0;
    for (double part : squares) square += part;
    return square;
}

// y [n, dim]: y[t, j] = x[t, order[j]]. torch selects columns element by element, at several times a copy's cost.
template <class T>
static void gather_columns(int64_t n, int64_t dim, const T* x, const int64_t* order, T* y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * dim > 1 << 16)
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < dim; j++) y[t * dim + j] = x[t * dim + order[j]];
}

// Elements of `size` bytes (1, 2, 4 or 8). 0: nothing is written, since a place in `order` is not one of x.
extern "C" int rows_gather(int size, int threads, int64_t n, int64_t dim, const void* x, const int64_t* order, void* y) {
    for (int64_t j = 0; j < dim; j++)
        if (order[j] < 0 || order[j] >= dim) return 0;
    switch (size) {
        case 1: gather_columns(n, dim, (const uint8_t*)x, order, (uint8_t*)y, threads); return 1;
        case 2: gather_columns(n, dim, (const uint16_t*)x, order, (uint16_t*)y, threads); return 1;
        case 4: gather_columns(n, dim, (const uint32_t*)x, order, (uint32_t*)y, threads); return 1;
        case 8: gather_columns(n, dim, (const uint64_t*)x, order, (uint64_t*)y, threads); return 1;
    }
    return 0;
}

extern "C" void rows_zero_dead(int threads, int64_t n, float* x, const int8_t* keep, double* square) {
    *square = zero_dead(n, x, keep, threads);
}

extern "C" void rows_sum(int bf16, int threads, int64_t n, int64_t dim, const void* x, float* sums) {
    if (bf16) column_sums(n, dim, (const uint16_t*)x, sums, threads);
    else column_sums(n, dim, (const float*)x, sums, threads);
}
