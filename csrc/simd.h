// Vectors of one instruction-set level: loads, stores and the few functions that the kernels need.
//
// A source that includes this is compiled once per level with SW_LEVEL set to the level's namespace
// (avx512, avx2, neon, portable) and SW_AVX512, SW_AVX2, SW_NEON or nothing defined. Everything lives
// in that namespace, so that the linker never mixes code of different levels.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(SW_INTRINSICS)
#include SW_INTRINSICS
#endif

#include "kernels.h"

#define SW_INLINE inline __attribute__((always_inline))

// Registers for a tile's sums: 32 of them, or 16.
#if defined(SW_AVX512) || defined(SW_NEON)
#define SW_MANY_REGISTERS
#endif

namespace sidewinder::SW_LEVEL {

#if defined(SW_AVX512)
constexpr int kVecBytes = 64;
#elif defined(SW_AVX2)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif
constexpr int kLanes = kVecBytes / 4;

typedef float Vec __attribute__((vector_size(kVecBytes)));
typedef int32_t IntVec __attribute__((vector_size(kVecBytes)));
typedef int16_t ShortVec __attribute__((vector_size(kVecBytes)));
typedef float Quad __attribute__((vector_size(16)));

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Quad load_quad(const float* p) {
    Quad v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline IntVec load_raw(const void* p) {
    IntVec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

#if defined(SW_AVX512)

inline Vec splat(float x) { return (Vec)_mm512_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_ps(a, b, c); }
// NaN in either operand yields the second one.
inline Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return (Vec)_mm512_min_ps(a, b); }
inline Vec load(const bf16* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
}
inline Vec load(const int8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw));
}
inline void store_high_halves(bf16* p, IntVec v) {
    const __m256i packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)v, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}
inline Quad fold(Vec v) {
    const __m256 low = _mm512_castps512_ps256((__m512)v);
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1));
    const __m256 sum = _mm256_add_ps(low, high);
    return (Quad)_mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
}

inline ShortVec load_shorts(const int8_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (ShortVec)_mm512_cvtepi8_epi16(raw);
}
inline IntVec multiply_pairs(ShortVec a, ShortVec b) {
    return (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}

#elif defined(SW_AVX2)

inline Vec splat(float x) { return (Vec)_mm256_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm256_fmadd_ps(a, b, c); }
// NaN in either operand yields the second one.
inline Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return (Vec)_mm256_min_ps(a, b); }
inline Vec load(const bf16* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16);
}
inline Vec load(const int8_t* p) {
    const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw));
}
inline void store_high_halves(bf16* p, IntVec v) {
    const __m256i halves = _mm256_srli_epi32((__m256i)v, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline Quad fold(Vec v) {
    return (Quad)_mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
}

inline ShortVec load_shorts(const int8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (ShortVec)_mm256_cvtepi8_epi16(raw);
}
inline IntVec multiply_pairs(ShortVec a, ShortVec b) {
    return (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

#elif defined(SW_NEON)

inline Vec splat(float x) { return (Vec)vdupq_n_f32(x); }
inline Vec fma(Vec a, Vec b, Vec c) {
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
// NaN in either operand yields the second one.
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec load(const bf16* p) {
    return (Vec)vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16);
}
inline Vec load(const int8_t* p) {
    int32_t raw;
    std::memcpy(&raw, p, sizeof raw);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(raw)));
    return (Vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
inline void store_high_halves(bf16* p, IntVec v) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32((uint32x4_t)v, 16));
}
inline Quad fold(Vec v) { return v; }
inline ShortVec load_shorts(const int8_t* p) { return (ShortVec)vmovl_s8(vld1_s8(p)); }
inline IntVec multiply_pairs(ShortVec a, ShortVec b) {
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y));
    return (IntVec)vpaddq_s32(low, vmull_high_s16(x, y));
}

#else

inline Vec splat(float x) { return Vec{x, x, x, x}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
// NaN in either operand yields the second one.
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec load(const bf16* p) {
    IntVec v;
    for (int i = 0; i < kLanes; ++i) v[i] = static_cast<int32_t>(uint32_t{p[i].bits} << 16);
    return (Vec)v;
}
inline Vec load(const int8_t* p) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v[i] = p[i];
    return v;
}
inline void store_high_halves(bf16* p, IntVec v) {
    for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<uint16_t>(uint32_t(v[i]) >> 16);
}
inline Quad fold(Vec v) { return v; }
inline ShortVec load_shorts(const int8_t* p) {
    ShortVec v;
    for (int i = 0; i < 2 * kLanes; ++i) v[i] = p[i];
    return v;
}
inline IntVec multiply_pairs(ShortVec a, ShortVec b) {
    IntVec v;
    for (int i = 0; i < kLanes; ++i) v[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return v;
}

#endif

// Round to nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, Vec v) {
    typedef uint32_t UintVec __attribute__((vector_size(kVecBytes)));
    const UintVec bits = (UintVec)v;
    const UintVec rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    store_high_halves(p, (v == v) ? (IntVec)rounded : (IntVec)(bits | 0x400000u));
}

// Lane sums of four vectors; the order of additions does not depend on the position.
inline Quad sum4(Vec a, Vec b, Vec c, Vec d) {
    const Quad qa = fold(a), qb = fold(b), qc = fold(c), qd = fold(d);
    const Quad ab = __builtin_shufflevector(qa, qb, 0, 4, 1, 5) +
                    __builtin_shufflevector(qa, qb, 2, 6, 3, 7);
    const Quad cd = __builtin_shufflevector(qc, qd, 0, 4, 1, 5) +
                    __builtin_shufflevector(qc, qd, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// a0 b0 a1 b1 ... of the lower and of the upper halves.
#if defined(SW_AVX512)
inline Vec interleave_low(Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Vec interleave_high(Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
}
#elif defined(SW_AVX2)
inline Vec interleave_low(Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
inline Vec interleave_high(Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
inline Vec interleave_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline Vec interleave_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

// Lane i of v[j] becomes lane j of v[i]: log2(kLanes) rounds of interleaving the two halves.
inline void transpose(Vec (&v)[kLanes]) {
#pragma GCC unroll 4
    for (int round = 1; round < kLanes; round *= 2) {
        Vec next[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = interleave_low(v[i], v[i + kLanes / 2]);
            next[2 * i + 1] = interleave_high(v[i], v[i + kLanes / 2]);
        }
        std::memcpy(v, next, sizeof next);
    }
}

// The odd bfloat16 values of a vector of pairs, widened.
inline Vec odd_halves(IntVec pairs) {
#if defined(SW_AVX2)
    // The mask stays in memory: the kernels that use this have no register left for it.
    static const IntVec mask = IntVec{} + ~0xffff;
    IntVec odd;
    asm("vpand %2, %1, %0" : "=x"(odd) : "x"(pairs), "m"(mask));
    return (Vec)odd;
#else
    return (Vec)(pairs & ~0xffff);
#endif
}

inline Vec even_halves(IntVec pairs) { return (Vec)(pairs << 16); }

// Keeps the compiler from loading v from memory again at each use.
inline Vec in_register(Vec v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(SW_AVX2)
    asm("" : "+x"(v));
#elif defined(SW_NEON)
    asm("" : "+w"(v));
#endif
    return v;
}

inline float sum(Vec v) { return sum4(v, v, v, v)[0]; }

// 2^t for -126 <= t <= 128, to 2 units in the last place.
inline Vec exp2_in_range(Vec t) {
    const Vec magic = splat(0x1.8p23f);
    const Vec shifted = t + magic;  // low mantissa bits hold the nearest integer
    const Vec f = t - (shifted - magic);
    Vec p = splat(1.3264721e-3f);
    p = fma(p, f, splat(9.6715130e-3f));
    p = fma(p, f, splat(5.5507336e-2f));
    p = fma(p, f, splat(2.4022242e-1f));
    p = fma(p, f, splat(6.9314700e-1f));
    p = fma(p, f, splat(1.0f));
    return (Vec)((IntVec)p + ((IntVec)shifted << 23));
}

// 2^t for t <= 0. Underflow ends at the smallest normal number.
inline Vec exp2_negative(Vec t) { return exp2_in_range(max(splat(-126.0f), t)); }

// 2^t for any t; from 128 on it is infinity, exactly.
inline Vec exp2(Vec t) { return exp2_negative(min(splat(128.0f), t)); }

constexpr float kLog2E = 1.44269504f;

inline Vec exp(Vec x) { return exp2(x * splat(kLog2E)); }

inline Vec silu(Vec x) { return x / (splat(1.0f) + exp(splat(0.0f) - x)); }

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), the latter as 2 atanh(u / (2 + u)).
inline Vec softplus(Vec x) {
    const Vec zero = splat(0.0f);
    const Vec u = exp2_negative(min(x, zero - x) * splat(kLog2E));
    const Vec s = u / (splat(2.0f) + u);
    const Vec w = s * s;
    Vec p = splat(1.2150466e-1f);
    p = fma(p, w, splat(1.0713829e-1f));
    p = fma(p, w, splat(1.4308442e-1f));
    p = fma(p, w, splat(1.9999439e-1f));
    p = fma(p, w, splat(3.3333337e-1f));
    const Vec log1p = (s + s) * fma(p, w, splat(1.0f));
    return max(zero, x) + log1p;
}

}  // namespace sidewinder::SW_LEVEL
