// What a register holds: vectors of float32, and the units that kernels broadcast (a float, or a pair of bfloat16).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <sys/mman.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 12;  // 12 x 2 accumulators, of 32 registers
#else
constexpr int LANES = 8, ROWS = 6;  // 6 x 2, of 16
#endif
typedef float V __attribute__((vector_size(LANES * 4)));

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline V load(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

// float32 -> bfloat16, to nearest even; NaN stays NaN.
static inline uint32_t bfloat(float f) {
    uint32_t u = bits(f), rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return (u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded;
}

// float32 and bfloat16 as vectors of float32, and back (to nearest even).
typedef uint32_t U __attribute__((vector_size(LANES * 4)));
typedef uint16_t H __attribute__((vector_size(LANES * 2)));

static inline V widen(const float* from) { return load(from); }
static inline V widen(const uint16_t* from) {
    H h;
    memcpy(&h, from, sizeof h);
    return (V)(__builtin_convertvector(h, U) << 16);
}
static inline void narrow(float* to, V v) { memcpy(to, &v, sizeof v); }
static inline void narrow(uint16_t* to, V v) {
    U u = (U)v;
    H h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, H);
    memcpy(to, &h, sizeof h);
}
static inline float widen1(float x) { return x; }
static inline float widen1(uint16_t x) {
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline void narrow1(float* to, float x) { *to = x; }
static inline void narrow1(uint16_t* to, float x) { *to = bfloat(x); }

struct Float {
    typedef float io;
    static constexpr int per = 1;
    static V madd(V acc, uint32_t unit, V b) {
        float a;
        memcpy(&a, &unit, 4);
        return acc + a * b;
    }
    static void store(io* to, V v) { memcpy(to, &v, sizeof v); }
    static uint32_t unit_of(float lo, float) { return bits(lo); }
    // 32 columns of two rows -> 32 units.
    static void join(const io* lo, const io*, uint32_t* to) { memcpy(to, lo, 32 * 4); }
    static void join_floats(const float* lo, const float*, uint32_t* to) { memcpy(to, lo, 32 * 4); }
    // 16 floats -> 16 units.
    static void narrow(const float* from, uint32_t* to) { memcpy(to, from, 16 * 4); }
    static void narrow_all(const float* from, int64_t count, io* to) { memcpy(to, from, count * 4); }
    // 32 units of neighbouring columns -> one column of 32.
    static void split(const uint32_t* units, io* to, int64_t) { memcpy(to, units, 32 * 4); }
};

#ifdef __AVX512BF16__
struct Pair {
    typedef uint16_t io;
    static constexpr int per = 2;
    static V madd(V acc, uint32_t unit, V b) {
        return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(unit), (__m512bh)b);
    }
    static void store(io* to, V v) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(v)); }
    static uint32_t unit_of(float lo, float hi) { return bfloat(lo) | bfloat(hi) << 16; }
    static void join(const io* lo, const io* hi, uint32_t* to) {
        for (int i = 0; i < 32; i++) to[i] = lo[i] | (uint32_t)hi[i] << 16;
    }
    static void join_floats(const float* lo, const float* hi, uint32_t* to) {
        for (int i = 0; i < 32; i++) to[i] = unit_of(lo[i], hi[i]);
    }
    // 32 floats -> 16 units.
    static void narrow(const float* from, uint32_t* to) {
        __m512bh v = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
        memcpy(to, &v, 64);
    }
    static void narrow_all(const float* from, int64_t count, io* to) {
        for (int64_t i = 0; i < count; i++) to[i] = bfloat(from[i]);
    }
    // 32 units of neighbouring columns -> two columns of 32, `stride` apart.
    static void split(const uint32_t* units, io* to, int64_t stride) {
        for (int i = 0; i < 32; i++) to[i] = units[i];
        for (int i = 0; i < 32; i++) to[stride + i] = units[i] >> 16;
    }
};
#endif

// Run `call` with K and io for the activations' dtype.
#ifdef __AVX512BF16__
#define DISPATCH(call)                  \
    if (bf16) {                         \
        typedef Pair K;                 \
        typedef typename K::io io;      \
        call;                           \
    } else {                            \
        typedef Float K;                \
        typedef typename K::io io;      \
        call;                           \
    }
#else
#define DISPATCH(call)      \
    {                       \
        typedef Float K;    \
        typedef K::io io;   \
        call;               \
    }
#endif

// to[j][i] = from[i][j] for 16 x 16 units; rows from `valid` on read as 0.
static inline void transpose16(const uint32_t* from, int64_t stride, int64_t valid, uint32_t* to, int64_t to_stride) {
#ifdef __AVX512F__
    __m512i r[16], s[16];
    for (int i = 0; i < 16; i++) r[i] = i < valid ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + j + 2]);
        }
    for (int j = 0; j < 4; j++)  // r[4 i + j]: columns j, 4 + j, 8 + j, 12 + j of rows 4 i to 4 i + 3
        for (int h = 0; h < 2; h++) {
            s[8 * h + j] = _mm512_shuffle_i32x4(r[8 * h + j], r[8 * h + 4 + j], 0x88);
            s[8 * h + 4 + j] = _mm512_shuffle_i32x4(r[8 * h + j], r[8 * h + 4 + j], 0xdd);
        }
    for (int j = 0; j < 4; j++)
        for (int odd = 0; odd < 2; odd++) {
            __m512i a = s[4 * odd + j], b = s[8 + 4 * odd + j];
            _mm512_storeu_si512(to + (4 * odd + j) * to_stride, _mm512_shuffle_i32x4(a, b, 0x88));
            _mm512_storeu_si512(to + (8 + 4 * odd + j) * to_stride, _mm512_shuffle_i32x4(a, b, 0xdd));
        }
#else
    for (int j = 0; j < 16; j++)
        for (int i = 0; i < 16; i++) to[j * to_stride + i] = i < valid ? from[i * stride + j] : 0;
#endif
}

// Working memory number `I` of this thread, of at least `units` units. It stays for the next call: fresh pages cost as
// much as small products do.
template <int I>
static uint32_t* scratch(int64_t units) {
    struct Buffer {
        uint32_t* at = nullptr;
        int64_t size = 0;
        ~Buffer() { free(at); }
    };
    static thread_local Buffer buffer;
    if (buffer.size < units) {
        free(buffer.at);
        buffer.size = up(units, 1 << 16);
        buffer.at = (uint32_t*)aligned_alloc(1 << 21, up(buffer.size * 4, 1 << 21));
        if (!buffer.at) abort();
        madvise(buffer.at, up(buffer.size * 4, 1 << 21), MADV_HUGEPAGE);
    }
    return buffer.at;
}
