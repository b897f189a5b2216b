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
#elif defined(SW_NEON)
inline Vec load(const f16* p) {
    return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}
inline void store(f16* p, Vec v) {
    const float16x4_t half = vcvt_f16_f32((float32x4_t)v);
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(half));
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

// Two vectors of consecutive elements, in whatever order is cheap.
template <class V>
struct Pair {
    V first, second;
};

template <class T>
inline auto load_pair(const T* p) {
    constexpr int64_t lanes = sizeof(T) == 8 ? kLanes / 2 : kLanes;
    return Pair<decltype(load(p))>{load(p), load(p + lanes)};
}

template <class T, class V>
inline void store_pair(T* p, Pair<V> v) {
    store(p, v.first);
    store(p + sizeof(V) / (sizeof(T) == 8 ? 8 : 4), v.second);
}

// bfloat16 is the high half of a float32: a word holds an even element below and an odd one above,
// and both take one operation to widen and one to put back.
typedef uint32_t Words __attribute__((vector_size(kVecBytes)));

inline Pair<Vec> load_pair(const bf16* p) {
    const Words words = (Words)load_raw(p);
    return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)};
}

// Rounded to nearest, ties to even, in the high half; NaN gives all ones, which is one too.
inline Words round_high(Vec v) {
    const Words bits = (Words)v;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) | (Words)(v != v);
}

inline void store_pair(bf16* p, Pair<Vec> v) {
    const Words words = round_high(v.first) >> 16 | (round_high(v.second) & 0xffff0000u);
    std::memcpy(p, &words, sizeof words);
}

template <class T>
inline void rank_sum_pair(T* out, const void* const* parts, int ranks, int64_t at) {
    auto total = load_pair(static_cast<const T*>(parts[0]) + at);
    for (int r = 1; r < ranks; ++r) {
        const auto part = load_pair(static_cast<const T*>(parts[r]) + at);
        total.first += part.first;
        total.second += part.second;
    }
    store_pair(out, total);
}

template <class T>
inline void rank_sum_of(const RankSumArgs& a) {
    constexpr int64_t step = 2 * kVecBytes / (sizeof(T) == 8 ? 8 : 4);
    T* const out = static_cast<T*>(a.out);
    int64_t i = 0;
    if (a.ranks == 2) {
        const void* const parts[2] = {a.parts[0], a.parts[1]};
        for (; i + step <= a.count; i += step) rank_sum_pair<T>(out + i, parts, 2, i);
    }
    for (; i + step <= a.count; i += step) rank_sum_pair<T>(out + i, a.parts, a.ranks, i);
    if (i == a.count) return;

    const size_t bytes = (a.count - i) * sizeof(T);
    T tails[kMostRanks][step], sum[step];
    const void* parts[kMostRanks] = {};
    for (int r = 0; r < a.ranks; ++r) {
        std::memset(tails[r], 0, sizeof tails[r]);
        std::memcpy(tails[r], static_cast<const T*>(a.parts[r]) + i, bytes);
        parts[r] = tails[r];
    }
    rank_sum_pair<T>(sum, parts, a.ranks, 0);
    std::memcpy(out + i, sum, bytes);
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
