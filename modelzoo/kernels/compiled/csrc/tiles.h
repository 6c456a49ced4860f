// The same products by AMX: a tile register holds 16 rows of 64 bytes, and one instruction multiplies two of them.
//
// A tile of A is [16 rows][32 bfloat16], of B [16 units][16 lanes] with two neighbours of the sum in a unit, of C
// [16 rows][16 lanes] in float32. Two tiles of A against two of B fill four of C: [32][32] results of 32 terms a step.
#pragma once

#include "pack.h"

#ifdef __AMX_BF16__
// The shapes of this thread's eight tiles, while it multiplies.
struct Tiles {
    Tiles() {
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } __attribute__((packed)) shapes;
        for (int i = 0; i < 8; i++) shapes.bytes[i] = 64, shapes.rows[i] = 16;
        asm volatile("" ::"r"(&shapes) : "memory");  // the intrinsic tells the compiler of its first bytes alone
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
};

// C [32][32] += sum over k < count of A(k) B(k). a(k): 32 rows of 32 bfloat16, b(k): 16 rows of 32 units; rows stand
// `a_stride` and `b_stride` bytes apart.
template <class A, class B>
static inline __attribute__((always_inline)) void add_tiles(int64_t count, A a, int64_t a_stride, B b,
                                                            int64_t b_stride) {
    asm volatile("" ::: "memory");  // the intrinsics do not tell the compiler that they read memory
    for (int64_t k = 0; k < count; k++) {
        const char *from = (const char*)a(k), *lanes = (const char*)b(k), *next = (const char*)a(k + (k + 1 < count));
        _tile_loadd(4, from, a_stride);
        _tile_loadd(6, lanes, b_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, lanes + 64, b_stride);
        for (int i = 0; i < 16; i++) __builtin_prefetch(next + i * a_stride);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, from + 16 * a_stride, a_stride);
        for (int i = 16; i < 32; i++) __builtin_prefetch(next + i * a_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

static inline __attribute__((always_inline)) void zero_tiles() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline __attribute__((always_inline)) void store_tiles(float* to) {  // C as [32][32]
    _tile_stored(0, to, 128);
    _tile_stored(1, to + 16, 128);
    _tile_stored(2, to + 16 * 32, 128);
    _tile_stored(3, to + 16 * 32 + 16, 128);
}

// to [32][32] = sum over k < count of A(k) B(k).
template <class A, class B>
static inline __attribute__((always_inline)) void tile32(int64_t count, A a, int64_t a_stride, B b, int64_t b_stride,
                                                         float* to) {
    zero_tiles();
    add_tiles(count, a, a_stride, b, b_stride);
    store_tiles(to);
}

// sums [32][32] + bias [32] -> bfloat16 rows of y, `valid` of them.
static inline void store32(const float* sums, const float* bias, int64_t valid, uint16_t* y, int64_t stride) {
    V b0 = bias ? load(bias) : V{}, b1 = bias ? load(bias + 16) : V{};
    for (int64_t t = 0; t < valid; t++) {
        V lo = load(sums + t * 32) + b0, hi = load(sums + t * 32 + 16) + b1;
        __m512bh both = _mm512_cvtne2ps_pbh((__m512)hi, (__m512)lo);
        memcpy(y + t * stride, &both, 64);
    }
}

constexpr int64_t TOKENS = 128;  // whose activations stay in the second-level cache while groups take turns

// y [n, out] = x W^T + bias, or with `transposed` y [n, in] = x W, for C a multiple of 32.
template <bool transposed>
static void multiply_tiles(const Weight& w, int64_t n, const uint16_t* x, const float* bias, uint16_t* y, int threads) {
    int64_t dim = transposed ? w.out : w.in, result = transposed ? w.in : w.out;
    int64_t groups = result / GROUP, sub = (transposed ? w.C : w.R) / GROUP, chunks = (n + TOKENS - 1) / TOKENS;
    auto begin = transposed ? starts(w.col_ptr, groups, sub, w.R, 2) : starts(w.row_ptr, groups, sub, w.C, 2);
    uint32_t* packed = scratch<1>(begin.back() * GROUP);
    int32_t* index = (int32_t*)scratch<2>(begin.back());
    auto last = (uint16_t*)scratch<0>(32 * dim / 2);  // the last tokens, filled up to 32
    if (n % 32) {
        memcpy(last, x + n / 32 * 32 * dim, n % 32 * dim * 2);
        memset(last + n % 32 * dim, 0, (32 - n % 32) * dim * 2);
    }
    auto pack = [&](int64_t g) {
        (transposed ? pack_columns<Pair> : pack_rows<Pair>)(w, g, packed + begin[g] * GROUP, index + begin[g]);
    };
    Shared weights(groups);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        alignas(64) float sums[32 * 32];
#pragma omp for schedule(dynamic, 2)
        for (int64_t task = 0; task < chunks * groups; task++) {
            int64_t first = task / groups * TOKENS, g = task % groups, count = (begin[g + 1] - begin[g]) / 16;
            weights.need(g, pack);
            const int32_t* at = index + begin[g];
            const uint32_t* lanes = packed + begin[g] * GROUP;
            for (int64_t t = first; t < n && t < first + TOKENS; t += 32) {
                const uint16_t* rows = t + 32 <= n ? x + t * dim : last;
                tile32(count, [=](int64_t k) { return rows + at[k * 16] * 2; }, dim * 2,
                       [=](int64_t k) { return lanes + k * 16 * GROUP; }, 128, sums);
                store32(sums, bias ? bias + g * GROUP : nullptr, n - t < 32 ? n - t : 32, y + t * result + g * GROUP,
                        result);
            }
        }
    }
}

// y [n, out] = x W^T + bias for narrower blocks: the live columns of each block row are joined for 32 tokens at a time.
static void multiply_joined(const Weight& w, int64_t n, const uint16_t* x, const float* bias, uint16_t* y, int threads) {
    int64_t rows = w.out / w.R, sub = w.R / GROUP;
    std::vector<int64_t> begin{0};  // steps of 32 live columns
    for (int64_t i = 0; i < rows; i++)
        begin.push_back(begin.back() + ((w.row_ptr[i + 1] - w.row_ptr[i]) * w.C + 31) / 32);
    auto packed = (uint16_t*)scratch<1>(begin.back() * w.R * 16);  // [block row][step][R outputs][32 columns]
    auto pack = [&](int64_t i) {
        uint16_t* to = packed + begin[i] * w.R * 32;
        Columns all(w, i * sub);
        for (int64_t c = 0; c < (begin[i + 1] - begin[i]) * 32; c++)
            for (int64_t r = 0; r < w.R; r++)
                to[(c / 32 * w.R + r) * 32 + c % 32] = c < all.count ? bfloat(all.at(c)[r * w.C]) : 0;
    };
    Shared shared(rows);
#pragma omp parallel num_threads(threads)
    {
        auto columns = (uint16_t*)scratch<0>(32 * w.in / 2);
        Tiles tiles;
        alignas(64) float sums[32 * 32], turned[32 * 32];
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < n; t += 32) {
            by_window<Pair, 32>(x + t * w.in, n - t, w.in, 0, columns);
            for (int64_t j = 0; j < rows; j++) {
                int64_t i = place(j, rows, omp_get_thread_num(), threads), count = begin[i + 1] - begin[i];
                shared.need(i, pack);
                Columns all(w, i * sub);
                uint32_t* lanes = scratch<2>(count * 16 * 32);
                for (int64_t k = 0; k < count * 16; k++) {  // columns beyond the last meet weights of 0
                    int64_t lo = 2 * k < all.count ? 2 * k : 0, hi = 2 * k + 1 < all.count ? 2 * k + 1 : 0;
                    Pair::join(columns + all.c(lo) * 32, columns + all.c(hi) * 32, lanes + k * 32);
                }
                for (int64_t s = 0; s < sub; s++) {
                    const uint16_t* weights = packed + begin[i] * w.R * 32 + s * GROUP * 32;
                    tile32(count, [=](int64_t k) { return weights + k * w.R * 32; }, 64,
                           [=](int64_t k) { return lanes + k * 16 * 32; }, 128, sums);
                    for (int a = 0; a < 32; a += 16)
                        for (int b = 0; b < 32; b += 16)
                            transpose16((uint32_t*)sums + a * 32 + b, 32, 16, (uint32_t*)turned + b * 32 + a, 32);
                    int64_t o = i * w.R + s * GROUP;
                    store32(turned, bias ? bias + o : nullptr, n - t < 32 ? n - t : 32, y + t * w.out + o, w.out);
                }
            }
        }
    }
}

// dvalues [nnz, R, C] = dy^T x on live blocks, for C a multiple of 32.
static void sample_tiles(const Weight& w, int64_t n, const uint16_t* dy, const uint16_t* x, float* dvalues,
                         int threads) {
    int64_t padded = up(n, 32), stride = padded + 32, groups = w.out / GROUP, sub = w.R / GROUP;
    uint32_t* lanes = scratch<1>(w.in * padded / 2);  // x as [in / 32][padded / 2][32]
    auto pack = [&](int64_t i) { by_groups<Pair>(x, n, w.in, i * 32, padded, lanes); };
    Shared shared(padded / 32);
#pragma omp parallel num_threads(threads)
    {
        shared.need_all(pack, threads);
        auto columns = (uint16_t*)scratch<0>(GROUP * stride / 2);  // dy as [32][stride]
        Tiles tiles;
        alignas(64) float sums[32 * 32];
#pragma omp for schedule(dynamic)
        for (int64_t g = 0; g < groups; g++) {
            by_columns<Pair>(dy + g * GROUP, n, w.out, padded, stride, columns);
            for (int64_t b = w.row_ptr[g / sub]; b < w.row_ptr[g / sub + 1]; b++)
                for (int64_t c = 0; c < w.C; c += 32) {
                    const uint32_t* at = lanes + (w.cols[b] * w.C + c) / 32 * padded / 2 * 32;
                    tile32(padded / 32, [=](int64_t k) { return columns + k * 32; }, stride * 2,
                           [=](int64_t k) { return at + k * 16 * 32; }, 128, sums);
                    float* to = dvalues + (b * w.R + g % sub * GROUP) * w.C + c;
                    for (int r = 0; r < 32; r++) memcpy(to + r * w.C, sums + r * 32, 128);
                }
        }
    }
}

// dx [n, in] = dy W for narrower blocks: 32 live columns of 32 tokens at a time are added where they belong.
static void spread_tiles(const Weight& w, int64_t n, const uint16_t* dy, uint16_t* dx, int threads) {
    int64_t rows = w.out / w.R, sub = w.R / GROUP;
    std::vector<int64_t> begin{0};  // live columns, filled up to 32 in each block row
    for (int64_t i = 0; i < rows; i++) begin.push_back(begin.back() + up((w.row_ptr[i + 1] - w.row_ptr[i]) * w.C, 32));
    auto packed = (uint16_t*)scratch<1>(begin.back() * w.R / 2);  // [block row][column][R]
    auto pack = [&](int64_t i) {
        Columns all(w, i * sub);
        uint16_t* to = packed + begin[i] * w.R;
        for (int64_t c = 0; c < begin[i + 1] - begin[i]; c++)
            for (int64_t r = 0; r < w.R; r++) to[c * w.R + r] = c < all.count ? bfloat(all.at(c)[r * w.C]) : 0;
    };
    Shared shared(rows);
#pragma omp parallel num_threads(threads)
    {
        uint32_t* units = scratch<0>(w.out / 2 * 32);
        Tiles tiles;
        alignas(64) float part[32 * 32];
        std::vector<float> sums(w.in * 32);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < n; t += 32) {
            by_unit<Pair, 32>(dy, n, w.out, t, units);
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int64_t i = 0; i < rows; i++) {
                shared.need(i, pack);
                Columns all(w, i * sub);
                const uint32_t* lanes = units + i * w.R / 2 * 32;
                for (int64_t c = 0; c < all.count; c += 32) {
                    const uint16_t* weights = packed + (begin[i] + c) * w.R;
                    tile32(sub, [=](int64_t k) { return weights + k * 32; }, w.R * 2,
                           [=](int64_t k) { return lanes + k * 16 * 32; }, 128, part);
                    for (int64_t m = 0; m < 32 && c + m < all.count; m++) {
                        float* to = sums.data() + all.c(c + m) * 32;
                        for (int j = 0; j < 32; j += 16) Float::store(to + j, load(to + j) + load(part + m * 32 + j));
                    }
                }
            }
            store_columns<Pair>(sums.data(), w.in, n - t, dx + t * w.in);
        }
    }
}

// dvalues [nnz, R, C] = dy^T x for narrower blocks: 32 live columns are joined for some tokens at a time.
static void sample_joined(const Weight& w, int64_t n, const uint16_t* dy, const uint16_t* x, float* dvalues,
                          int threads) {
    constexpr int64_t span = 256;
    int64_t padded = up(n, 32), stride = padded + 32, groups = w.out / GROUP;
    auto columns = (uint16_t*)scratch<0>(w.in * stride / 2);  // x as [in][stride]
    auto pack = [&](int64_t i) { by_token<Pair>(x, n, w.in, i * 32, w.in, stride, columns); };
    Shared shared(padded / 32);
#pragma omp parallel num_threads(threads)
    {
        shared.need_all(pack, threads);
        uint32_t* lanes = scratch<1>(GROUP * padded / 2);  // dy as [padded / 2][32]
        Tiles tiles;
        alignas(64) uint16_t panel[32 * span];
        alignas(64) float sums[32 * 32];
#pragma omp for schedule(dynamic)
        for (int64_t g = 0; g < groups; g++) {
            Columns all(w, g);
            by_group<Pair>(dy + g * GROUP, n, w.out, 0, padded, lanes);
            for (int64_t c = 0; c < all.count; c += 32) {
                zero_tiles();
                for (int64_t t = 0; t < padded; t += span) {
                    int64_t width = std::min(padded - t, span);
                    for (int64_t m = 0; m < 32; m++)  // columns beyond the last repeat one, and are not kept
                        memcpy(panel + m * span, columns + all.c(c + m < all.count ? c + m : c) * stride + t, width * 2);
                    add_tiles(width / 32, [&](int64_t k) { return panel + k * 32; }, span * 2,
                              [=](int64_t k) { return lanes + (t / 2 + k * 16) * 32; }, 128);
                }
                store_tiles(sums);
                for (int64_t m = 0; m < 32 && c + m < all.count; m++) {
                    float* to = dvalues + (all.at(c + m) - w.values);
                    for (int r = 0; r < 32; r++) to[r * w.C] = sums[m * 32 + r];
                }
            }
        }
    }
}
#endif
