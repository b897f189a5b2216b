// Packed int8 weights: products in integers, exact within a group of inputs.
//
// x is rounded to 16 bits with one scale per row and group (an error of 2^-16 of the group's largest
// value, far below the weights' own) and split into two signed bytes, 256 * high + low. Weights are
// stored plus 128, since vpdpbusd multiplies unsigned by signed bytes; what that adds is the same for
// all outputs (RowGroup::bias).
#pragma once

#include "linear_packed.h"

namespace sidewinder::SW_LEVEL {

constexpr float kLargestInteger = 127 * 256 + 127;  // both bytes at their largest

// Rounds one group of a row, `n` values of which the last ones may be padding: two words for four.
inline RowGroup round_group(const float* values, int64_t n, uint32_t* words) {
    const Vec zeros = splat(0.0f);
    Vec largest = zeros, poison = zeros;
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = load(values + i);
        largest = max(largest, max(v, zeros - v));
        poison = fma(v, zeros, poison);  // NaN where v is not finite
    }
    const float scale = _mm512_reduce_max_ps((__m512)largest) / kLargestInteger + sum(poison);
    const Vec inverse = splat(scale > 0.0f ? 1.0f / scale : 0.0f);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += kLanes) {
        const __m512i integer = _mm512_cvtps_epi32((__m512)(load(values + i) * inverse));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(integer, _mm512_set1_epi32(128)), 8);
        total = _mm512_add_epi32(total, integer);
        const __m128i lows = _mm512_cvtepi32_epi8(integer), highs = _mm512_cvtepi32_epi8(high);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(words + i / 2), _mm_unpacklo_epi32(lows, highs));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(words + i / 2 + 4),
                         _mm_unpackhi_epi32(lows, highs));
    }
    // Of what is not finite the sum is anything, and the scale NaN: unsigned numbers may wrap around.
    return {scale, static_cast<int32_t>(128u * static_cast<uint32_t>(_mm512_reduce_add_epi32(total)))};
}

// Four products of unsigned weights and signed bytes of x, added to each lane.
SW_INLINE IntVec add_products(IntVec sum, __m512i weights, __m512i x) {
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, weights, x);
}

struct PackedInt8 {
    static constexpr int kTileRows = 3;
    static constexpr int64_t kUnitInputs = 4, kUnitWords = 2;

    static PackedRows arrange(const LinearArgs& a) {
        const int64_t groups = (a.inputs + a.group_size - 1) / a.group_size;
        const int64_t width = groups * a.group_size, stride = width / 2;
        const int64_t bytes = a.rows * (stride * sizeof(uint32_t) + groups * sizeof(RowGroup));
        auto* row_groups = static_cast<RowGroup*>(scratch(Scratch::call, bytes));
        auto* words = reinterpret_cast<uint32_t*>(row_groups + a.rows * groups);
        parallel(a.rows, 1 + (1 << 14) / width, [&](int64_t begin, int64_t end) {
            auto* wide = static_cast<float*>(scratch(Scratch::range, width * sizeof(float)));
            zero(wide, width);
            for (int64_t m = begin; m < end; ++m) {
                load_row(wide, at(a.x, m), a.x.dtype, a.inputs);
                for (int64_t g = 0; g < groups; ++g) {
                    row_groups[m * groups + g] =
                        round_group(wide + g * a.group_size, a.group_size,
                                    words + m * stride + g * a.group_size / 2);
                }
            }
        });
        return {words, stride, row_groups, groups};
    }

    template <int M, int Lines>
    static void multiply(const PackedTile& t) {
        for (int64_t u = 0, g = 0; u < t.units; u += t.group_units, ++g) {
            multiply_group<M, Lines>(t, u, smaller(t.group_units, t.units - u), g);
        }
    }

    template <int M, int Lines>
    static SW_INLINE void multiply_group(const PackedTile& t, int64_t u, int64_t units, int64_t g) {
        IntVec low[M][kVecsOfPanel] = {}, high[M][kVecsOfPanel] = {};
        const uint32_t* x = t.x + u * kUnitWords;
        for (int64_t j = 0; j < units; ++j) {
            ask<Lines>(t.ahead + (u + j) * kUnitBytes);
            __m512i weights[kVecsOfPanel];
#pragma GCC unroll 4
            for (int v = 0; v < kVecsOfPanel; ++v) {
                weights[v] = vector_at(t.weights + (u + j) * kUnitBytes, v);
            }
#pragma GCC unroll 3
            for (int m = 0; m < M; ++m) {
                const uint32_t* words = x + m * t.x_stride + j * kUnitWords;
                const __m512i lows = _mm512_set1_epi32(static_cast<int>(words[0]));
                const __m512i highs = _mm512_set1_epi32(static_cast<int>(words[1]));
#pragma GCC unroll 4
                for (int v = 0; v < kVecsOfPanel; ++v) {
                    low[m][v] = add_products(low[m][v], weights[v], lows);
                    high[m][v] = add_products(high[m][v], weights[v], highs);
                }
            }
        }
#pragma GCC unroll 3
        for (int m = 0; m < M; ++m) {
            const RowGroup& group = t.row_groups[m * t.row_group_stride + g];
#pragma GCC unroll 4
            for (int v = 0; v < kVecsOfPanel; ++v) {
                const IntVec exact = (high[m][v] << 8) + low[m][v] - group.bias;
                const Vec product = __builtin_convertvector(exact, Vec);
                const Vec scale = load(t.scales + g * kPanel + v * kLanes) * splat(group.scale);
                float* place = t.sums + m * kPanel + v * kLanes;
                store(place, fma(product, scale, load(place)));
            }
        }
    }
};

inline void linear_packed(const LinearArgs& a) {
    a.scales.data == nullptr ? linear_packed_as<PackedBf16>(a) : linear_packed_as<PackedInt8>(a);
}

}  // namespace sidewinder::SW_LEVEL
