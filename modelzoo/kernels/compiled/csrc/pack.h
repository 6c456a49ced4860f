// Activations and weights brought into the order in which the register tile reads them.
#pragma once

#include <omp.h>
#include <sched.h>
#include <atomic>
#include <vector>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "units.h"

constexpr int GROUP = 32;  // outputs (or inputs) together
constexpr int CHUNK = 96;  // tokens whose activations stay in the second-level cache

// Threads begin at different places of `count`, so that they do not meet at the same pieces.
static inline int64_t place(int64_t i, int64_t count, int64_t thread, int64_t threads) {
    return (i + count * thread / threads) % count;
}

// Pieces of work that threads share. Each is done once, by the thread that needs it first: nobody waits for all to be
// done, as at a barrier, where a thread that the system has put aside would hold up the others.
class Shared {
    std::vector<std::atomic<uint8_t>> state;  // 0: to do, 1: being done, 2: done

   public:
    explicit Shared(int64_t count) : state(count) {}
    template <class F>
    void need(int64_t i, F work) {
        if (state[i].load(std::memory_order_acquire) == 2) return;
        uint8_t to_do = 0;
        if (state[i].compare_exchange_strong(to_do, 1)) {
            work(i);
            state[i].store(2, std::memory_order_release);
        }
        while (state[i].load(std::memory_order_acquire) != 2) sched_yield();
    }
    template <class F>
    void need_all(F work, int threads) {
        for (int64_t i = 0; i < (int64_t)state.size(); i++)
            need(place(i, state.size(), omp_get_thread_num(), threads), work);
    }
};

struct Weight {  // a packed weight: pointers into torch's tensors
    int64_t out, in, R, C;
    const int32_t *row_ptr, *cols, *col_ptr, *col_rows, *by_column;
    const float* values;
};

// x [n, dim], T tokens from t -> [dim / per][T] units: neighbours along dim share a unit. Tokens beyond n are 0.
template <class K, int T>
static void by_unit(const typename K::io* x, int64_t n, int64_t dim, int64_t t, uint32_t* to) {
    int64_t units = dim / K::per;
    for (int h = 0; h < T; h += 16)
        for (int64_t u = 0; u < units; u += 16)
            transpose16((const uint32_t*)(x + (t + h) * dim) + u, units, n - t - h, to + u * T + h, T);
}

// x [n, dim], n <= CHUNK / 2 -> [CHUNK / 2 / ROWS][dim / per][ROWS] units: what a register tile reads stands together.
// A tile of tokens beyond n reads as 0.
template <class K>
static void by_tile(const typename K::io* x, int64_t n, int64_t dim, uint32_t* to) {
    constexpr int tokens = CHUNK / 2;
    int64_t units = dim / K::per;
    uint32_t lines[16][tokens];
    for (int64_t u = 0; u < units; u += 16) {
        for (int64_t t = 0; t < tokens; t += 16) {
            auto from = (const uint32_t*)(x + t * dim) + u;
            for (int i = 0; i < 16; i++) __builtin_prefetch(from + i * units + 32);
            transpose16(from, units, n - t, lines[0] + t, tokens);
        }
        for (int64_t t = 0; t < tokens; t += ROWS)
            for (int i = 0; i < 16; i++) memcpy(to + t * units + (u + i) * ROWS, lines[i] + t, ROWS * 4);
    }
}

// `count` columns of x [n, dim], 32 tokens from t -> [count][stride] elements: neighbours along tokens are neighbours in
// memory. Tokens beyond n are 0.
template <class K>
static void by_token(const typename K::io* x, int64_t n, int64_t dim, int64_t t, int64_t count, int64_t stride,
                     typename K::io* to) {
    uint32_t tile[16 * 32];
    for (int64_t u = 0; u < count / K::per; u += 16) {
        for (int h = 0; h < 32; h += 16)
            transpose16((const uint32_t*)(x + (t + h) * dim) + u, dim / K::per, n - t - h, tile + h, 32);
        for (int i = 0; i < 16; i++) K::split(tile + i * 32, to + (u + i) * K::per * stride + t, stride);
    }
}

// 32 columns of x [n, dim], `padded` tokens (a multiple of 32) -> [32][stride] elements.
template <class K>
static void by_columns(const typename K::io* x, int64_t n, int64_t dim, int64_t padded, int64_t stride,
                       typename K::io* to) {
    for (int64_t t = 0; t < padded; t += 32) by_token<K>(x, n, dim, t, GROUP, stride, to);
}

// x [n, dim] -> [window][dim][T] elements, tokens beyond n are 0.
template <class K, int T>
static void by_window(const typename K::io* x, int64_t n, int64_t dim, int64_t window, typename K::io* to) {
    for (int t = 0; t < T; t += 32)
        by_token<K>(x + window * T * dim, n - window * T, dim, t, dim, T, to + window * dim * T);
}

// 32 columns of x [n, dim], tokens t to end (a multiple of 32) -> [tokens / per][32] units: neighbours along tokens share
// a unit. Tokens beyond n are 0.
template <class K>
static void by_group(const typename K::io* x, int64_t n, int64_t dim, int64_t t, int64_t end, uint32_t* to) {
    static const typename K::io zero[GROUP] = {};
    for (; t < end; t += K::per, to += GROUP)
        K::join(t < n ? x + t * dim : zero, t + 1 < n ? x + (t + 1) * dim : zero, to);
}

// All columns of 32 tokens from t, each 32 of them in their place of [dim / 32][padded / per][32] units.
template <class K>
static void by_groups(const typename K::io* x, int64_t n, int64_t dim, int64_t t, int64_t padded, uint32_t* to) {
    for (int64_t c = 0; c < dim; c += GROUP) by_group<K>(x + c, n, dim, t, t + 32, to + (c * padded + t * GROUP) / K::per);
}

// The live columns of 32 outputs: column i is number c(i) of the input and its weights are at(i)[r * C], r < 32.
struct Columns {
    const Weight& w;
    int64_t first, count;
    const float* base;
    Columns(const Weight& w, int64_t g) : w(w) {
        int64_t sub = w.R / GROUP;
        first = w.row_ptr[g / sub];
        count = (w.row_ptr[g / sub + 1] - first) * w.C;
        base = w.values + g % sub * GROUP * w.C;
    }
    int64_t c(int64_t i) const { return w.cols[first + i / w.C] * w.C + i % w.C; }
    const float* at(int64_t i) const { return base + (first + i / w.C) * w.R * w.C + i % w.C; }
};

// Where the units of each group begin; an odd column at a group's end is paired with zeros.
static std::vector<int64_t> starts(const int32_t* ptr, int64_t groups, int64_t per_block, int64_t sum, int64_t per) {
    std::vector<int64_t> begin{0};
    for (int64_t g = 0; g < groups; g++) {
        int64_t live = ptr[g / per_block + 1] - ptr[g / per_block];
        begin.push_back(begin.back() + (live * sum + per - 1) / per);
    }
    return begin;
}

// 32 outputs as [columns / per][32] units, and which unit of the activations each one meets.
template <class K>
static void pack_rows(const Weight& w, int64_t g, uint32_t* to, int32_t* index) {
    Columns columns(w, g);
    constexpr int wide = 16 * K::per;
    for (int64_t i = 0; i < columns.count; i += K::per) index[i / K::per] = columns.c(i) / K::per;
    if (w.C % wide == 0) {
        uint32_t rows[16 * 16];
        for (int64_t i = 0; i < columns.count; i += wide)
            for (int r = 0; r < GROUP; r += 16) {
                for (int k = 0; k < 16; k++) K::narrow(columns.at(i) + (r + k) * w.C, rows + k * 16);
                transpose16(rows, 16, 16, to + i / K::per * GROUP + r, GROUP);
            }
        return;
    }
    for (int64_t i = 0; i < columns.count; i += K::per, to += GROUP) {
        const float *lo = columns.at(i), *hi = i + K::per > columns.count ? nullptr : columns.at(i + K::per - 1);
        for (int r = 0; r < GROUP; r++) to[r] = K::unit_of(lo[r * w.C], hi ? hi[r * w.C] : 0.0f);
    }
}

// 32 inputs as [live rows / per][32] units: the transposed weight, for C a multiple of 32.
template <class K>
static void pack_columns(const Weight& w, int64_t g, uint32_t* to, int32_t* index) {
    int64_t sub = w.C / GROUP;
    for (int64_t i = w.col_ptr[g / sub]; i < w.col_ptr[g / sub + 1]; i++) {
        int64_t b = w.by_column[i];
        const float* from = w.values + b * w.R * w.C + g % sub * GROUP;
        for (int64_t r = 0; r < w.R; r += K::per, to += GROUP) {
            K::join_floats(from + r * w.C, from + (r + K::per - 1) * w.C, to);
            *index++ = (w.col_rows[i] * w.R + r) / K::per;
        }
    }
}

// 32 outputs as [columns][32 / per] units: neighbouring outputs share a unit.
template <class K>
static void pack_pairs(const Weight& w, int64_t g, uint32_t* to) {
    Columns columns(w, g);
    for (int64_t i = 0; i < columns.count; i++, to += GROUP / K::per) {
        const float* from = columns.at(i);
        for (int r = 0; r < GROUP; r += K::per)
            to[r / K::per] = K::unit_of(from[r * w.C], from[(r + K::per - 1) * w.C]);
    }
}

// sums [dim][T tokens] -> `valid` rows of y [tokens, dim].
template <class K, int T = 32>
static void store_columns(const float* sums, int64_t dim, int64_t valid, typename K::io* y) {
    float rows[16 * 16];
    for (int64_t h = 0; h < T && h < valid; h += 16)
        for (int64_t c = 0; c < dim; c += 16) {
            transpose16((const uint32_t*)sums + c * T + h, T, 16, (uint32_t*)rows, 16);
            for (int64_t r = 0; r < 16 && h + r < valid; r++)
                for (int j = 0; j < 16; j += LANES) K::store(y + (h + r) * dim + c + j, load(rows + r * 16 + j));
        }
}

// Whether bfloat16 has kernels of its own here.
extern "C" int has_bf16() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

// Whether this process may use AMX's tiles. Linux grants them on request, for the whole process.
extern "C" int has_tiles() {
#ifdef __AMX_BF16__
    static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return granted;
#else
    return 0;
#endif
}
