// Products of few rows with a weight, dense or packed: each weight is read once, in the order of memory, whose speed
// bounds them. Generation asks for them, token by token. Weights (W) are float32, or bfloat16: half of the bytes.
//
// A result is summed in an order that its own row and output decide alone, with one multiply-add a step: the other rows,
// and how many there are, change none of its bits.

#include <cmath>
#include "pack.h"

constexpr int TOGETHER = 4;  // rows whose sums stay in registers

// The sum of the lanes, by halves.
static inline float total(V v) {
    float s[LANES];
    memcpy(s, &v, sizeof v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

// The first `count` of a vector's lanes; the others are 0.
template <class T>
static inline V load_some(const T* from, int64_t count) {
    T some[LANES] = {};
    memcpy(some, from, count * sizeof(T));
    return widen(some);
}

// y [T, R outputs] = bias + x W^T; x: T rows `in` apart, w: R rows.
template <int T, int R, class W>
static inline void dense_tile(int64_t in, int64_t out, const float* x, const W* w, const float* bias, float* y) {
    V acc[T][R] = {};
    int64_t whole = in / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES) {
        V b[R];
        for (int r = 0; r < R; r++) {
            b[r] = widen(w + r * in + k);
            __builtin_prefetch(w + r * in + k + 16 * LANES);
        }
        for (int t = 0; t < T; t++) {
            V a = load(x + t * in + k);
            for (int r = 0; r < R; r++) acc[t][r] += a * b[r];
        }
    }
    if (whole < in)
        for (int t = 0; t < T; t++)
            for (int r = 0; r < R; r++)
                acc[t][r] += load_some(x + t * in + whole, in - whole) * load_some(w + r * in + whole, in - whole);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) y[t * out + r] = total(acc[t][r]) + (bias ? bias[r] : 0.0f);
}

template <int R, class W>
static inline void dense_rows(int64_t n, int64_t in, int64_t out, const float* x, const W* w, const float* bias,
                              float* y) {
    int64_t t = 0;
    for (; t + TOGETHER <= n; t += TOGETHER) dense_tile<TOGETHER, R>(in, out, x + t * in, w, bias, y + t * out);
    for (; t + 2 <= n; t += 2) dense_tile<2, R>(in, out, x + t * in, w, bias, y + t * out);
    if (t < n) dense_tile<1, R>(in, out, x + t * in, w, bias, y + t * out);
}

template <class W>
static void dense(int threads, int64_t n, int64_t in, int64_t out, const float* x, const W* w, const float* bias,
                  float* y) {
    constexpr int R = 4;
    int64_t tiles = out / R;
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads) if (in * out > 1 << 15)
    for (int64_t i = 0; i <= tiles; i++) {
        int64_t o = i * R;
        if (i < tiles) dense_rows<R>(n, in, out, x, w + o * in, bias ? bias + o : nullptr, y + o);
        else
            for (; o < out; o++) dense_rows<1>(n, in, out, x, w + o * in, bias ? bias + o : nullptr, y + o);
    }
}

extern "C" void few_dense(int bf16, int threads, int64_t n, int64_t in, int64_t out, const float* x, const void* w,
                          const float* bias, float* y) {
    if (bf16) dense(threads, n, in, out, x, (const uint16_t*)w, bias, y);
    else dense(threads, n, in, out, x, (const float*)w, bias, y);
}

// Sums of one block row, [R * width / LANES][T] vectors. `wide`: a block's columns fill whole vectors, and the vectors
// of an output are summed into one; else a vector holds several outputs, whose columns alternate.
template <class W, int T, bool wide>
static inline void block_row(const Weight& w, int64_t i, const float* x, const float* bias, float* y, V* acc) {
    int64_t R = w.R, C = w.C, vectors = wide ? R : R * C / LANES, step = wide ? C : LANES;
    std::fill(acc, acc + vectors * T, V{});
    int32_t column[LANES];
    for (int l = 0; l < LANES; l++) column[l] = l % C;
    for (int64_t b = w.row_ptr[i]; b < w.row_ptr[i + 1]; b++) {
        const W* values = (const W*)w.values + b * R * C;
        const float* from = x + w.cols[b] * C;
        V repeated[T];
        if (!wide)
            for (int t = 0; t < T; t++) {
                if (C == 1) repeated[t] = from[t * w.in] - V{};
                else
                    for (int l = 0; l < LANES; l++) repeated[t][l] = from[t * w.in + column[l]];
            }
        for (int64_t v = 0; v < vectors; v++, values += step) {
            V sum[T];
            for (int t = 0; t < T; t++) sum[t] = acc[v * T + t];
            if (wide)
                for (int64_t c = 0; c < C; c += LANES) {
                    V value = widen(values + c);
                    for (int t = 0; t < T; t++) sum[t] += value * load(from + t * w.in + c);
                }
            else {
                V value = widen(values);
                for (int t = 0; t < T; t++) sum[t] += value * repeated[t];
            }
            for (int t = 0; t < T; t++) acc[v * T + t] = sum[t];
        }
    }
    for (int t = 0; t < T; t++)
        for (int64_t r = 0; r < R; r++) {
            float sum = 0;
            if (wide) sum = total(acc[r * T + t]);
            else
                for (int64_t c = r * C; c < (r + 1) * C; c++) sum += acc[c / LANES * T + t][c % LANES];
            y[t * w.out + i * R + r] = sum + (bias ? bias[i * R + r] : 0.0f);
        }
}

template <class W, bool wide>
static void block_rows(const Weight& w, int64_t n, const float* x, const float* bias, float* y, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (w.row_ptr[w.out / w.R] * w.R * w.C > 1 << 15)
    for (int64_t i = 0; i < w.out / w.R; i++) {
        V* acc = (V*)scratch<0>(w.R * std::max<int64_t>(w.C, LANES) * TOGETHER);
        int64_t t = 0;
        for (; t + TOGETHER <= n; t += TOGETHER)
            block_row<W, TOGETHER, wide>(w, i, x + t * w.in, bias, y + t * w.out, acc);
        for (; t + 2 <= n; t += 2) block_row<W, 2, wide>(w, i, x + t * w.in, bias, y + t * w.out, acc);
        if (t < n) block_row<W, 1, wide>(w, i, x + t * w.in, bias, y + t * w.out, acc);
    }
}

// Single weights, for as many rows as a vector `S` has lanes. lanes: [in] of them.
template <class W, class S>
static void single_rows(const Weight& w, int64_t rows, const float* x, const float* bias, float* y, int threads) {
    constexpr int64_t width = sizeof(S) / 4;
    const W* values = (const W*)w.values;
    S* lanes = (S*)scratch<1>(w.in * width);
    for (int64_t k = 0; k < w.in; k++)
        for (int64_t l = 0; l < width; l++) lanes[k][l] = l < rows ? x[l * w.in + k] : 0.0f;
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads) if (w.row_ptr[w.out] > 1 << 14)
    for (int64_t o = 0; o < w.out; o++) {
        S acc[4] = {};
        int64_t i = w.row_ptr[o], end = w.row_ptr[o + 1];
        for (; i + 4 <= end; i += 4)
            for (int j = 0; j < 4; j++) acc[j] += widen1(values[i + j]) * lanes[w.cols[i + j]];
        for (int j = 0; i + j < end; j++) acc[j] += widen1(values[i + j]) * lanes[w.cols[i + j]];
        S sums = (acc[0] + acc[1]) + (acc[2] + acc[3]);
        for (int64_t l = 0; l < rows; l++) y[l * w.out + o] = sums[l] + (bias ? bias[o] : 0.0f);
    }
}

template <class W>
static void packed(const Weight* w, int threads, int64_t n, const float* x, const float* bias, float* y) {
    typedef float Four __attribute__((vector_size(16)));
    if (w->R == 1 && w->C == 1)
        for (int64_t t = 0; t < n; t += LANES) {
            int64_t rows = std::min<int64_t>(n - t, LANES);
            (rows <= 4 ? single_rows<W, Four> : single_rows<W, V>)(*w, rows, x + t * w->in, bias, y + t * w->out, threads);
        }
    else if (w->C % LANES == 0) block_rows<W, true>(*w, n, x, bias, y, threads);
    else block_rows<W, false>(*w, n, x, bias, y, threads);
}

extern "C" void few_packed(const Weight* w, int bf16, int threads, int64_t n, const float* x, const float* bias,
                           float* y) {
    (bf16 ? packed<uint16_t> : packed<float>)(w, threads, n, x, bias, y);
}

// e^x for x <= 0, to two units in the last place; 0 below -87, and of -inf.
static inline V exponential(V x) {
    typedef int32_t I __attribute__((vector_size(LANES * 4)));
    I some = ~(x <= -87.0f);  // NaN stays
    x = (V)((I)x & some);
    V n = x * 1.44269504f - 0.5f;
    I whole = __builtin_convertvector(n, I);  // towards 0: to the nearest of what is at most 0
    n = __builtin_convertvector(whole, V);
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    V y = ((((1.9875691500e-4f * x + 1.3981999507e-3f) * x + 8.3334519073e-3f) * x + 4.1665795894e-2f) * x +
           1.6666665459e-1f) * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    return (V)((I)(y * (V)((whole + 127) << 23)) & some);
}

struct Attend {  // strides in floats, of rows, heads and tokens; the last dimension is contiguous
    int64_t b, heads, groups, t, n, d, q[3], k[3], v[3], mask[3];
    float scale;
};

// y [b, t, heads, d] = softmax(scale q k^T + mask) v, for few new tokens t and n cached ones. `mask` may be null.
// k and v have `groups` heads, each for heads / groups heads of q.
extern "C" void few_attend(const Attend* a, int threads, const float* q, const float* k, const float* v,
                           const float* mask, float* y) {
    int64_t whole = a->d / LANES * LANES, rest = a->d - whole, parts = up(a->d, LANES) / LANES;
    auto vector = [=](const float* x, int64_t i) { return i < whole ? load(x + i) : load_some(x + i, rest); };
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (a->b * a->heads * a->t * a->n * a->d > 1 << 15)
    for (int64_t i = 0; i < a->b * a->heads * a->t; i++) {
        int64_t at[3] = {i / a->t / a->heads, i / a->t % a->heads, i % a->t};
        auto place = [&](const int64_t* strides) {
            int64_t sum = 0;
            for (int s = 0; s < 3; s++) sum += at[s] * strides[s];
            return sum;
        };
        int64_t group = at[1] / (a->heads / a->groups);
        const float *query = q + place(a->q);
        const float *keys = k + at[0] * a->k[0] + group * a->k[1], *values = v + at[0] * a->v[0] + group * a->v[1];
        const float* add = mask ? mask + place(a->mask) : nullptr;
        int64_t padded = up(a->n, LANES);
        float* scores = (float*)scratch<2>(padded);
        float most = -INFINITY;
        for (int64_t j = 0; j < a->n; j++) {
            V sum = {};
            for (int64_t c = 0; c < a->d; c += LANES) sum += vector(query, c) * vector(keys + j * a->k[2], c);
            scores[j] = total(sum) * a->scale + (add ? add[j] : 0.0f);
            most = std::max(most, scores[j]);
        }
        std::fill(scores + a->n, scores + padded, -INFINITY);
        V sums = {};
        for (int64_t j = 0; j < padded; j += LANES) {
            V weights = exponential(load(scores + j) - most);
            sums += weights;
            narrow(scores + j, weights);
        }
        V* result = (V*)scratch<3>(parts * LANES);
        std::fill(result, result + parts, V{});
        for (int64_t j = 0; j < a->n; j++)
            for (int64_t p = 0; p < parts; p++) result[p] += scores[j] * vector(values + j * a->v[2], p * LANES);
        float scale = 1.0f / total(sums), *to = y + ((at[0] * a->t + at[2]) * a->heads + at[1]) * a->d;
        for (int64_t p = 0; p < parts; p++) {
            V scaled = result[p] * scale;
            memcpy(to + p * LANES, &scaled, p * LANES < whole ? sizeof scaled : rest * 4);
        }
    }
}
