// Products of activations with a packed block-sparse weight: forward, dX, dW. R and the inputs are multiples of 32.
//
// To the kernels a pattern is, for each group of 32 outputs, a list of live columns. One register tile does all the
// arithmetic: M broadcast units against two vectors, M x 2 accumulators in float32. The products differ in what is
// broadcast, what fills the lanes and what is summed:
//   product   broadcast tokens,        lanes 32 outputs (inputs for dX, where C divides by 32), sum over live weights
//   scatter   broadcast live columns,  lanes 32 tokens, sum over 32 outputs: dX of narrow blocks
//   sample    broadcast live columns,  lanes 32 outputs, sum over tokens: dW
// One thread sums each result in a fixed order: equal bits from run to run, whatever the number of threads.

#include "tiles.h"

// acc[m] += sum over k < count of a(k)[m * step] * b[k * stride ...], two vectors of lanes.
template <class K, int M, int step, class A>
static inline __attribute__((always_inline)) void tile(V (&acc)[M][2], int64_t count, A a, const uint32_t* b,
                                                       int64_t stride) {
    for (int64_t k = 0; k < count; k++, b += stride) {
        V b0 = load(b), b1 = load(b + LANES);
        __builtin_prefetch(b + 16 * stride);
        if (LANES == 16) __builtin_prefetch(b + 16 * stride + LANES);
        auto units = a(k);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            uint32_t unit = units[m * step];
            acc[m][0] = K::madd(acc[m][0], unit, b0);
            acc[m][1] = K::madd(acc[m][1], unit, b1);
        }
    }
}

// y [tokens, 32 of a group] = bias + sum over `count` units. x: tiles of ROWS tokens, `tile_stride` units apart, in which
// the ROWS units of one place stand together and places `stride` units apart; w: [count][32].
template <class K>
static void product(const uint32_t* x, int64_t tile_stride, int64_t stride, const uint32_t* w, const int32_t* index,
                    int64_t count, const float* bias, int64_t tokens, typename K::io* y, int64_t y_stride) {
    for (int64_t t = 0; t < tokens; t += ROWS, x += tile_stride)
        for (int s = 0; s < GROUP; s += 2 * LANES) {
            V acc[ROWS][2], b0 = bias ? load(bias + s) : V{}, b1 = bias ? load(bias + s + LANES) : V{};
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; m++) acc[m][0] = b0, acc[m][1] = b1;
            tile<K, ROWS, 1>(acc, count, [=](int64_t k) { return x + index[k] * stride; }, w + s, GROUP);
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; m++)
                if (t + m < tokens)
                    for (int j = 0; j < 2; j++) K::store(y + (t + m) * y_stride + s + j * LANES, acc[m][j]);
        }
}

// y [n, out] = x W^T + bias, or with `transposed` y [n, in] = x W. A thread packs the tokens that it multiplies: what
// another one packed would have to come from that one's cache.
template <class K, bool transposed>
static void multiply(const Weight& w, int64_t n, const typename K::io* x, const float* bias, typename K::io* y,
                     int threads) {
    bool apart = !transposed && w.C % K::per;  // the columns of a unit stand apart
    int64_t dim = transposed ? w.out : w.in, result = transposed ? w.in : w.out, width = apart ? CHUNK : CHUNK / 2;
    int64_t groups = result / GROUP, sub = (transposed ? w.C : w.R) / GROUP, chunks = (n + width - 1) / width;
    int64_t step = apart ? sub : 1;  // groups of one block row meet the same columns
    int64_t shares = chunks ? std::min((4 * threads + chunks - 1) / chunks, groups / step) : 0;  // of groups
    auto begin = transposed ? starts(w.col_ptr, groups, sub, w.R, K::per) : starts(w.row_ptr, groups, sub, w.C, K::per);
    uint32_t* packed = scratch<1>(begin.back() * GROUP);
    int32_t* index = (int32_t*)scratch<2>(begin.back());
    auto pack = [&](int64_t g) {
        (transposed ? pack_columns<K> : pack_rows<K>)(w, g, packed + begin[g] * GROUP, index + begin[g]);
    };
    Shared weights(groups);
#pragma omp parallel num_threads(threads)
    {
        uint32_t* units = scratch<0>(width * dim / K::per);
        std::vector<uint32_t> panel;
        std::vector<int32_t> straight;
        int64_t present = -1;  // the chunk in `units`
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < chunks * shares; task++) {
            int64_t i = task / shares, share = task % shares, tokens = std::min(n - i * width, width);
            if (i != present) {
                if (apart) by_window<K, CHUNK>(x, n, dim, i, (typename K::io*)units - i * dim * CHUNK);
                else by_tile<K>(x + i * width * dim, tokens, dim, units);
                present = i;
            }
            int64_t first = groups / step * share / shares, some = groups / step * (share + 1) / shares - first;
            for (int64_t j = 0; j < some; j++) {
                int64_t g = (first + place(j, some, omp_get_thread_num(), threads)) * step;
                int64_t count = begin[g + 1] - begin[g];
                const uint32_t* from = units;
                if (apart) {  // join them for these tokens
                    Columns columns(w, g);
                    auto column = [&](int64_t c) { return (typename K::io*)units + columns.c(c) * CHUNK; };
                    panel.resize(count * CHUNK + 16);
                    while ((int64_t)straight.size() < count) straight.push_back(straight.size());
                    for (int64_t k = 0; k < count; k++)
                        for (int t = 0; t < CHUNK; t += 32)
                            K::join(column(2 * k) + t, column(2 * k + 1 < columns.count ? 2 * k + 1 : 2 * k) + t,
                                    panel.data() + k * CHUNK + t);
                    from = panel.data();
                }
                for (int64_t o = g; o < g + step; o++) {
                    weights.need(o, pack);
                    product<K>(from, apart ? ROWS : dim / K::per * ROWS, apart ? CHUNK : ROWS,
                               packed + begin[o] * GROUP, apart ? straight.data() : index + begin[o], count,
                               bias ? bias + o * GROUP : nullptr, tokens, y + i * width * result + o * GROUP, result);
                }
            }
        }
    }
}

// Live columns c to c + M of 32 outputs, weights [M][32 / per]: dx [in][32 tokens] += W^T dy. dy: [32 / per][32].
template <class K, int M>
static void scatter(const Columns& columns, int64_t c, const uint32_t* weights, const uint32_t* dy, float* dx) {
    for (int s = 0; s < 32; s += 2 * LANES) {
        V acc[M][2];
        float* to[M];
        for (int m = 0; m < M; m++) {
            to[m] = dx + columns.c(c + m) * 32 + s;
            acc[m][0] = load(to[m]), acc[m][1] = load(to[m] + LANES);
        }
        tile<K, M, GROUP / K::per>(acc, GROUP / K::per, [=](int64_t k) { return weights + k; }, dy + s, 32);
        for (int m = 0; m < M; m++) Float::store(to[m], acc[m][0]), Float::store(to[m] + LANES, acc[m][1]);
    }
}

// dx [n, in] = dy W for blocks too narrow to fill the lanes.
template <class K>
static void spread(const Weight& w, int64_t n, const typename K::io* dy, typename K::io* dx, int threads) {
    int64_t groups = w.out / GROUP, sub = w.R / GROUP, per_group = GROUP / K::per;
    auto begin = starts(w.row_ptr, groups, sub, w.C, 1);
    uint32_t* packed = scratch<1>(begin.back() * per_group);
    Shared weights(groups);
#pragma omp parallel num_threads(threads)
    {
        uint32_t* units = scratch<0>(w.out / K::per * 32);
        std::vector<float> sums(w.in * 32);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < n; t += 32) {
            by_unit<K, 32>(dy, n, w.out, t, units);
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int64_t g = 0; g < groups; g++) {
                weights.need(g, [&](int64_t g) { pack_pairs<K>(w, g, packed + begin[g] * per_group); });
                Columns columns(w, g);
                const uint32_t *lanes = packed + begin[g] * per_group, *from = units + g * per_group * 32;
                int64_t c = 0;
                for (; c + ROWS <= columns.count; c += ROWS)
                    scatter<K, ROWS>(columns, c, lanes + c * per_group, from, sums.data());
                for (; c < columns.count; c++) scatter<K, 1>(columns, c, lanes + c * per_group, from, sums.data());
            }
            store_columns<K>(sums.data(), w.in, n - t, dx + t * w.in);
        }
    }
}

// Unit k of columns that stand apart.
struct Apart {
    const uint32_t* const* from;
    int64_t k;
    uint32_t operator[](int m) const { return from[m][k]; }
};

// dw [M][32] += sum over `count` units of tokens, live columns c to c + M of 32 outputs. x: [in][stride], dy: [count][32].
template <class K, int M>
static void sample(const Columns& columns, int64_t c, const uint32_t* x, int64_t stride, const uint32_t* dy,
                   int64_t count, float* dw) {
    const uint32_t* from[M];
    for (int m = 0; m < M; m++) from[m] = x + columns.c(c + m) * stride;
    for (int s = 0; s < GROUP; s += 2 * LANES) {
        V acc[M][2];
        for (int m = 0; m < M; m++)
            for (int j = 0; j < 2; j++) acc[m][j] = load(dw + m * GROUP + s + j * LANES);
        tile<K, M, 1>(acc, count, [&](int64_t k) { return Apart{from, k}; }, dy + s, GROUP);
        for (int m = 0; m < M; m++)
            for (int j = 0; j < 2; j++) Float::store(dw + m * GROUP + s + j * LANES, acc[m][j]);
    }
}

// dw [M rows, `stride` apart][32] += sum over `count` units of tokens, M outputs and 32 inputs. dy, x: [count][32].
template <class K, int M>
static void sample_block(const uint32_t* dy, const uint32_t* x, int64_t count, float* dw, int64_t stride, bool add) {
    for (int s = 0; s < GROUP; s += 2 * LANES) {
        V acc[M][2] = {};
        if (add)
            for (int m = 0; m < M; m++)
                for (int j = 0; j < 2; j++) acc[m][j] = load(dw + m * stride + s + j * LANES);
        tile<K, M, 1>(acc, count, [=](int64_t k) { return dy + k * GROUP; }, x + s, GROUP);
        for (int m = 0; m < M; m++)
            for (int j = 0; j < 2; j++) Float::store(dw + m * stride + s + j * LANES, acc[m][j]);
    }
}

// dvalues [nnz, R, C] = dy^T x on live blocks, for C a multiple of 32.
template <class K>
static void sampled_blocks(const Weight& w, int64_t n, const typename K::io* dy, const typename K::io* x,
                           float* dvalues, int threads) {
    constexpr int64_t span = 96 * K::per;  // tokens whose gradients stay in the smallest first-level cache
    constexpr int REST = ROWS * 2 / 3, WHOLE = GROUP - 2 * REST + REST * (ROWS == 12);  // 32 = 2 x 12 + 8 = 4 x 6 + 2 x 4
    int64_t groups = w.out / GROUP, sub = w.R / GROUP, padded = up(n, 32);
    uint32_t* inputs = scratch<0>(w.in * padded / K::per);  // [in / 32][padded / per][32]
    if (n == 0) memset(dvalues, 0, w.row_ptr[w.out / w.R] * w.R * w.C * 4);
    auto pack = [&](int64_t i) { by_groups<K>(x, n, w.in, i * 32, padded, inputs); };
    Shared shared(padded / 32);
#pragma omp parallel num_threads(threads)
    {
        shared.need_all(pack, threads);
        uint32_t* outputs = scratch<3>(span / K::per * GROUP);
#pragma omp for schedule(dynamic)
        for (int64_t g = 0; g < groups; g++)
            for (int64_t t = 0; t < padded; t += span) {
                int64_t end = std::min(padded, t + span), count = (end - t) / K::per;
                by_group<K>(dy + g * GROUP, n, w.out, t, end, outputs);
                for (int64_t b = w.row_ptr[g / sub]; b < w.row_ptr[g / sub + 1]; b++)
                    for (int64_t c = 0; c < w.C; c += GROUP) {
                        const uint32_t* at = inputs + ((w.cols[b] * w.C + c) * padded + t * GROUP) / K::per;
                        float* to = dvalues + (b * w.R + g % sub * GROUP) * w.C + c;
                        int r = 0;
                        for (; r < WHOLE; r += ROWS)
                            sample_block<K, ROWS>(outputs + r, at, count, to + r * w.C, w.C, t > 0);
                        for (; r < GROUP; r += REST)
                            sample_block<K, REST>(outputs + r, at, count, to + r * w.C, w.C, t > 0);
                    }
            }
    }
}

// dvalues [nnz, R, C] = dy^T x on live blocks, for narrower ones.
template <class K>
static void sampled(const Weight& w, int64_t n, const typename K::io* dy, const typename K::io* x, float* dvalues,
                    int threads) {
    constexpr int64_t span = 1024;  // tokens whose gradients stay in the first-level caches
    int64_t groups = w.out / GROUP, padded = up(n, 32), stride = (padded + 32) / K::per;
    uint32_t* inputs = scratch<0>(w.in * stride);  // [in][stride]
    auto pack = [&](int64_t i) {
        by_token<K>(x, n, w.in, i * 32, w.in, stride * K::per, (typename K::io*)inputs);
    };
    Shared packed(padded / 32);
#pragma omp parallel num_threads(threads)
    {
        packed.need_all(pack, threads);
        uint32_t* outputs = scratch<3>(span / K::per * GROUP);
        std::vector<float> sums;
#pragma omp for schedule(dynamic)
        for (int64_t g = 0; g < groups; g++) {
            Columns columns(w, g);
            sums.assign(columns.count * GROUP, 0.0f);
            for (int64_t t = 0; t < padded; t += span) {
                int64_t end = std::min(padded, t + span), count = (end - t) / K::per, c = 0;
                by_group<K>(dy + g * GROUP, n, w.out, t, end, outputs);
                const uint32_t* from = inputs + t / K::per;
                for (; c + ROWS <= columns.count; c += ROWS)
                    sample<K, ROWS>(columns, c, from, stride, outputs, count, sums.data() + c * GROUP);
                for (; c + 4 <= columns.count; c += 4)
                    sample<K, 4>(columns, c, from, stride, outputs, count, sums.data() + c * GROUP);
                for (; c < columns.count; c++)
                    sample<K, 1>(columns, c, from, stride, outputs, count, sums.data() + c * GROUP);
            }
            int64_t wide = w.C % 16 ? 1 : 16;
            for (int64_t i = 0; i < columns.count; i += wide) {
                float* to = dvalues + (columns.at(i) - w.values);
                const float* from = sums.data() + i * GROUP;
                if (wide == 16)
                    for (int r = 0; r < GROUP; r += 16)
                        transpose16((const uint32_t*)from + r, GROUP, 16, (uint32_t*)to + r * w.C, w.C);
                else
                    for (int r = 0; r < GROUP; r++) to[r * w.C] = from[r];
            }
        }
    }
}

extern "C" {

void block_forward(const Weight* w, int bf16, int threads, int64_t n, const void* x, const float* bias, void* y) {
#ifdef __AMX_BF16__
    if (bf16 && has_tiles())
        return (w->C % GROUP ? multiply_joined : multiply_tiles<false>)(*w, n, (const uint16_t*)x, bias, (uint16_t*)y,
                                                                        threads);
#endif
    DISPATCH((multiply<K, false>(*w, n, (const io*)x, bias, (io*)y, threads)))
}

void block_backward_x(const Weight* w, int bf16, int threads, int64_t n, const void* dy, void* dx) {
#ifdef __AMX_BF16__
    if (bf16 && has_tiles()) {
        if (w->C % GROUP) return spread_tiles(*w, n, (const uint16_t*)dy, (uint16_t*)dx, threads);
        return multiply_tiles<true>(*w, n, (const uint16_t*)dy, nullptr, (uint16_t*)dx, threads);
    }
#endif
    if (w->C % GROUP == 0) {
        DISPATCH((multiply<K, true>(*w, n, (const io*)dy, nullptr, (io*)dx, threads)))
    } else {
        DISPATCH((spread<K>(*w, n, (const io*)dy, (io*)dx, threads)))
    }
}

void block_backward_w(const Weight* w, int bf16, int threads, int64_t n, const void* dy, const void* x,
                      float* dvalues) {
#ifdef __AMX_BF16__
    if (bf16 && has_tiles())
        return (w->C % GROUP ? sample_joined : sample_tiles)(*w, n, (const uint16_t*)dy, (const uint16_t*)x, dvalues,
                                                             threads);
#endif
    if (w->C % GROUP == 0) {
        DISPATCH((sampled_blocks<K>(*w, n, (const io*)dy, (const io*)x, dvalues, threads)))
    } else {
        DISPATCH((sampled<K>(*w, n, (const io*)dy, (const io*)x, dvalues, threads)))
    }
}
}
