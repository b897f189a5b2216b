// Packed weights in int8 on levels without dot products of bytes: exact sums of products in 32 bits.
//
// x is rounded to 16 bits as beside dot products (linear_packed_integer.h), so that results are theirs.
// A weight plus 128 is 255 at most and a rounded x 32,639: sums of 128 such products, the largest
// group, fit into 31 bits. A lane's even bytes make one vector of 16-bit weights and its odd ones
// another, so a unit of x is two words of two values each, 0 with 2 and 1 with 3.
#pragma once

#include "linear_packed_int4.h"

namespace sidewinder::SW_LEVEL {

// A group in 16 bits.
inline RowGroup round_to_shorts(const float* values, int64_t n, int32_t offset, uint32_t* words) {
    return round_group(values, n, 127 * 256 + 127, offset, [&](int64_t i, IntVec integers) {
        for (int k = 0; k < kLanes; k += 4) {
            for (int odd = 0; odd < 2; ++odd) {
                const auto first = static_cast<uint32_t>(integers[k + odd]);
                const auto second = static_cast<uint32_t>(integers[k + odd + 2]);
                words[(i + k) / 2 + odd] = (first & 0xffff) | second << 16;
            }
        }
    });
}

struct PackedInt8 {
    static constexpr int kTileRows = 6;
    static constexpr int64_t kUnitInputs = 4, kUnitWords = 2;

    static PackedRows arrange(const LinearArgs& a) {
        return arrange_groups(a, 2, [&](const float* values, uint32_t* words) {
            return round_to_shorts(values, a.group_size, 128, words);
        });
    }

    // Two unsigned weights in each lane, of 16 bits each: the even bytes, or the odd ones.
    static SW_INLINE IntVec weights_of(IntVec bytes, int odd) {
        return odd == 0 ? bytes & 0x00ff00ff : (IntVec)((UshortVec)bytes >> 8);
    }

    static SW_INLINE IntVec products(IntVec weights, IntVec x) {
        return multiply_pairs((ShortVec)weights, (ShortVec)x);
    }

    template <int M, int Lines>
    static void multiply(const PackedTile& t) {
        multiply_groups<PackedInt8, M, Lines>(t);
    }

    // The sums of a group's products.
    template <int M, int V, int Lines>
    static SW_INLINE void sum_exactly(const PackedTile& t, int first, int64_t u, int64_t units,
                                      IntVec (&totals)[M][V]) {
        Vec sums[M][V] = {};
        add_units<PackedInt8, Lines>(t, first, u, units, sums);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) totals[m][v] = (IntVec)sums[m][v];
        }
    }
};

inline void linear_packed(const LinearArgs& a) {
    a.bits == 4 ? linear_packed_as<PackedInt4>(a) : linear_packed_as<PackedInt8>(a);
}

}  // namespace sidewinder::SW_LEVEL
