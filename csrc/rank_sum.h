// The sum of all ranks' parts, in rank order.
//
// 16-bit floats are added in float32 and rounded once, the others in themselves. All parts of a block
// are read before it is written, so the output may be one of the parts.
#pragma once

#include "simd.h"

namespace sidewinder::SW_LEVEL {

struct f16 {
    uint16_t bits;
};

#if defined(SW_AVX512)
inline Vec load(const f16* p) {
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(f16* p, Vec v) {
    const __m256i half = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}
#elif defined(SW_AVX2)
inline Vec load(const f16* p) {
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store(f16* p, Vec v) {
    const __m128i half = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half);
}
#else
inline float bits_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float widen(f16 h) {
    const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
    // Exponent and mantissa in float32's place; multiplying by 2^112 corrects the bias, and makes
    // denormals right on the way. Infinity and NaN get the largest exponent instead.
    const float magnitude = rest < 0x7c00u ? bits_as_float(rest << 13) * 0x1p112f
                                           : bits_as_float((rest << 13) | 0x7f800000u);
    return sign != 0 ? -magnitude : magnitude;
}

// Round to nearest, ties to even.
inline f16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    uint32_t half;
    if (rest > 0x7f800000u) {
        half = 0x7e00u | (rest >> 13 & 0x1ffu);  // NaN
    } else if (rest >= 0x477ff000u) {
        half = 0x7c00u;  // 65520 and more round to infinity
    } else if (rest >= 0x38800000u) {
        half = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
    } else {
        // Adding 0.5 puts the rounded multiple of 2^-24 into the low bits of the sum.
        const float shifted = bits_as_float(rest) + 0.5f;
        std::memcpy(&half, &shifted, sizeof half);
        half -= 0x3f000000u;
    }
    return {static_cast<uint16_t>(sign | half)};
}

inline Vec load(const f16* p) { return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
inline void store(f16* p, Vec v) {
    for (int i = 0; i < kLanes; ++i) p[i] = narrow(v[i]);
}
#endif

typedef double Doubles __attribute__((vector_size(kVecBytes)));

inline Doubles load(const double* p) {
    Doubles v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(double* p, Doubles v) { std::memcpy(p, &v, sizeof v); }

// The first `n` elements at `p` and zeros.
template <class T, int64_t lanes>
inline auto load_tail(const T* p, int64_t n) {
    T tail[lanes] = {};
    std::memcpy(tail, p, n * sizeof(T));
    return load(tail);
}

template <class T>
inline void rank_sum_of(const RankSumArgs& a) {
    constexpr int64_t lanes = sizeof(T) == 8 ? kLanes / 2 : kLanes;
    const auto part = [&](int r, int64_t at) { return static_cast<const T*>(a.parts[r]) + at; };
    T* out = static_cast<T*>(a.out);
    int64_t i = 0;
    for (; i + 2 * lanes <= a.count; i += 2 * lanes) {
        auto low = load(part(0, i)), high = load(part(0, i + lanes));
        for (int r = 1; r < a.ranks; ++r) {
            low += load(part(r, i));
            high += load(part(r, i + lanes));
        }
        store(out + i, low);
        store(out + i + lanes, high);
    }
    for (; i < a.count; i += lanes) {
        const int64_t n = a.count - i < lanes ? a.count - i : lanes;
        auto total = load_tail<T, lanes>(part(0, i), n);
        for (int r = 1; r < a.ranks; ++r) total += load_tail<T, lanes>(part(r, i), n);
        T sum[lanes];
        store(sum, total);
        std::memcpy(out + i, sum, n * sizeof(T));
    }
}

inline void rank_sum(const RankSumArgs& a) {
    switch (a.type) {
        case 0: return rank_sum_of<float>(a);
        case 1: return rank_sum_of<bf16>(a);
        case 2: return rank_sum_of<f16>(a);
        default: return rank_sum_of<double>(a);
    }
}

}  // namespace sidewinder::SW_LEVEL
