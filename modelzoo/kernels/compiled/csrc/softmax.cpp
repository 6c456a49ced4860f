// Cross-entropy of a row of logits and its gradient, in the place of the logits, while the row is in the cache.

#include <cmath>
#include "units.h"

// e^x for x <= 0, to 2 units in the last place; 0 below -87, NaN for NaN.
static inline V exp_negative(V x) {
    V clamped = x < -87.0f ? V{} - 87.0f : x;
    V shifted = clamped * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;  // to the nearest integer
    V r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    V p = V{} + 1.9875691500e-4f;
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + c;
    V power = (V)(((U)shifted - 0x4b400000u + 127) << 23);
    return x < -87.0f ? V{} : (p * r * r + r + 1.0f) * power;
}

// losses [n] = -log softmax(logits)[label]; with `gradient` logits [n, vocab] become softmax - one-hot.
template <class T>
static void cross_entropy(int64_t n, int64_t vocab, T* logits, const int64_t* labels, float* losses, int gradient,
                          int threads) {
    int64_t whole = vocab / LANES * LANES;
#pragma omp parallel num_threads(threads)
    {
        float* row = (float*)scratch<0>(up(vocab, LANES));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            T* at = logits + i * vocab;
            for (int64_t j = vocab; j < up(vocab, LANES); j++) row[j] = -INFINITY;
            for (int64_t j = whole; j < vocab; j++) row[j] = widen1(at[j]);
            V most = V{} - INFINITY, total{};
            for (int64_t j = 0; j < whole; j += LANES) {
                V v = widen(at + j);
                most = v > most ? v : most;
                narrow(row + j, v);
            }
            float top = -INFINITY, sum = 0, label = widen1(at[labels[i]]);
            for (int j = 0; j < LANES; j++) top = most[j] > top ? most[j] : top;
            for (int64_t j = whole; j < vocab; j++) top = row[j] > top ? row[j] : top;
            for (int64_t j = 0; j < vocab; j += LANES) {
                V e = exp_negative(load(row + j) - top);
                total += e;
                narrow(row + j, e);
            }
            for (int j = 0; j < LANES; j++) sum += total[j];
            losses[i] = std::log(sum) + top - label;
            if (!gradient) continue;
            float scale = 1.0f / sum;
            float truth = row[labels[i]] * scale - 1.0f;
            for (int64_t j = 0; j < whole; j += LANES) narrow(at + j, load(row + j) * scale);
            for (int64_t j = whole; j < vocab; j++) narrow1(at + j, row[j] * scale);
            narrow1(at + labels[i], truth);
        }
    }
}

extern "C" void softmax_cross_entropy(int bf16, int threads, int64_t n, int64_t vocab, void* logits,
                                      const int64_t* labels, float* losses, int gradient) {
    if (bf16) cross_entropy(n, vocab, (uint16_t*)logits, labels, losses, gradient, threads);
    else cross_entropy(n, vocab, (float*)logits, labels, losses, gradient, threads);
}
