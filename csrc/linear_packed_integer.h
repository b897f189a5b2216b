// Packed weights in int8 and int4: products in integers, exact within a group of inputs.
//
// x is rounded with one scale per row and group. Beside int8 weights it has 16 bits (an error of 2^-16
// of the group's largest value, far below the weights' own), split into two signed bytes, 256 * high +
// low. Beside int4 ones it has 8, an error of 2^-8, still a fraction of the weights' own, for half as
// many products.
// Weights are stored plus 128 or 8, since vpdpbusd multiplies unsigned by signed bytes; what that adds
// is the same for all outputs (RowGroup::bias). A byte of int4 has two weights, so a unit is two vectors
// of bytes, its lower and its upper halves, one after the other.
#pragma once

#include "linear_packed_bf16.h"
#include "linear_packed_groups.h"

namespace sidewinder::SW_LEVEL {

// A group in 16 bits, 127 * 256 + 127 the largest, so that all bytes are signed: a word of four values'
// lower bytes, then one of their upper bytes. `offset` is the weights'.
inline RowGroup round_to_pairs(const float* values, int64_t n, int32_t offset, uint32_t* words) {
    const float scale = largest_magnitude(values, n) / (127 * 256 + 127);
    const Vec inverse = splat(scale > 0.0f ? 1.0f / scale : 0.0f);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += kLanes) {
        const __m512i integer = _mm512_cvtps_epi32((__m512)(load(values + i) * inverse));
        total = _mm512_add_epi32(total, integer);
        auto* out = reinterpret_cast<__m128i*>(words + i / 4 * 2);
        const __m128i lows = _mm512_cvtepi32_epi8(integer);
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(integer, _mm512_set1_epi32(128)), 8);
        const __m128i highs = _mm512_cvtepi32_epi8(high);
        _mm_storeu_si128(out, _mm_unpacklo_epi32(lows, highs));
        _mm_storeu_si128(out + 1, _mm_unpackhi_epi32(lows, highs));
    }
    // Of what is not finite the sum is anything, and the scale NaN: unsigned numbers may wrap around.
    const uint32_t sum_of_all = static_cast<uint32_t>(_mm512_reduce_add_epi32(total));
    return {scale, static_cast<int32_t>(static_cast<uint32_t>(offset) * sum_of_all)};
}

// Four products of unsigned weights and signed bytes of x, a word of them, added to each lane.
SW_INLINE void add_products(IntVec& sum, __m512i weights, uint32_t x) {
    const __m512i bytes = _mm512_set1_epi32(static_cast<int>(x));
    sum = (IntVec)_mm512_dpbusd_epi32((__m512i)sum, weights, bytes);
}

// Four unsigned weights in each lane of a unit's vector: all of int8's, or a half of int4's.
template <int Bits>
SW_INLINE __m512i weights_at(const char* unit, int v, int half) {
    const __m512i bytes = vector_at(unit, v);
    if constexpr (Bits == 8) return bytes;
    return _mm512_and_si512(half == 0 ? bytes : _mm512_srli_epi32(bytes, 4), _mm512_set1_epi8(15));
}

template <int Bits>
struct PackedInteger {
    static constexpr int kBytes = Bits == 4 ? 1 : 2;  // of a rounded value of x
    static constexpr int kHalves = 8 / Bits;
    static constexpr int kTileRows = 6 / kBytes;
    static constexpr int64_t kUnitInputs = 4 * kHalves, kUnitWords = kBytes * kHalves;

    static PackedRows arrange(const LinearArgs& a) {
        return arrange_groups(a, kBytes, [&](const float* values, uint32_t* words) {
            constexpr auto round = kBytes == 2 ? round_to_pairs : round_to_bytes;
            return round(values, a.group_size, 1 << (Bits - 1), words);
        });
    }

    template <int M, int Lines>
    static void multiply(const PackedTile& t) {
        for (int64_t u = 0, g = 0; u < t.units; u += t.group_units, ++g) {
            multiply_group<M, Lines>(t, u, smaller(t.group_units, t.units - u), g);
        }
    }

    template <int M, int Lines>
    static SW_INLINE void multiply_group(const PackedTile& t, int64_t u, int64_t units, int64_t g) {
        IntVec sums[kBytes][M][kVecsOfPanel] = {};
        for (int64_t j = u; j < u + units; ++j) {
            ask<Lines>(t.ahead + j * kUnitBytes);
#pragma GCC unroll 2
            for (int half = 0; half < kHalves; ++half) {
                __m512i weights[kVecsOfPanel];
#pragma GCC unroll 4
                for (int v = 0; v < kVecsOfPanel; ++v) {
                    weights[v] = weights_at<Bits>(t.weights + j * kUnitBytes, v, half);
                }
#pragma GCC unroll 6
                for (int m = 0; m < M; ++m) {
                    const uint32_t* words = t.x + m * t.x_stride + j * kUnitWords + kBytes * half;
#pragma GCC unroll 2
                    for (int byte = 0; byte < kBytes; ++byte) {
#pragma GCC unroll 4
                        for (int v = 0; v < kVecsOfPanel; ++v) {
                            add_products(sums[byte][m][v], weights[v], words[byte]);
                        }
                    }
                }
            }
        }
        if constexpr (kBytes == 2) {
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
                for (int v = 0; v < kVecsOfPanel; ++v) sums[0][m][v] += sums[kBytes - 1][m][v] << 8;
            }
        }
        add_group<M, kVecsOfPanel>(t, 0, g, sums[0]);
    }
};

inline void linear_packed(const LinearArgs& a) {
    if (a.scales.data == nullptr) return linear_packed_as<PackedBf16>(a);
    a.bits == 4 ? linear_packed_as<PackedInteger<4>>(a) : linear_packed_as<PackedInteger<8>>(a);
}

}  // namespace sidewinder::SW_LEVEL
