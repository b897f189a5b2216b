// Vectors of signed and unsigned bytes, on the levels of x86: what packed integer weights need.
//
// to_nearest: the nearest integers, of two the even one; of what is no number or too large, anything.
// store_bytes: the nearest signed bytes. multiply_bytes: sums of two products of neighbours each, of
// unsigned bytes with signed ones, in 16 bits.
#pragma once

#include "simd.h"

namespace sidewinder::SW_LEVEL {

#if defined(SW_AVX512)

inline IntVec to_nearest(Vec v) { return (IntVec)_mm512_cvtps_epi32((__m512)v); }
inline void store_bytes(void* p, IntVec v) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtsepi32_epi8((__m512i)v));
}
inline ShortVec multiply_bytes(IntVec weights, IntVec x) {
    return (ShortVec)_mm512_maddubs_epi16((__m512i)weights, (__m512i)x);
}

#elif defined(SW_AVX2)

inline IntVec to_nearest(Vec v) { return (IntVec)_mm256_cvtps_epi32((__m256)v); }
inline void store_bytes(void* p, IntVec v) {
    const __m128i low = _mm256_castsi256_si128((__m256i)v);
    const __m128i shorts = _mm_packs_epi32(low, _mm256_extracti128_si256((__m256i)v, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi16(shorts, shorts));
}
inline ShortVec multiply_bytes(IntVec weights, IntVec x) {
    return (ShortVec)_mm256_maddubs_epi16((__m256i)weights, (__m256i)x);
}

#endif

}  // namespace sidewinder::SW_LEVEL
