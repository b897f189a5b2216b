// Packed weights in int4 on levels without dot products of bytes: exact sums of products in 16 bits.
//
// x is rounded to signed bytes as beside dot products (linear_packed_integer.h), so that results are
// theirs. A weight plus 8 is 15 at most and a byte of x 127: eight sums of two such products fit into
// 16 bits. Those are 32 inputs, a group or a part of one.
#pragma once

#include "linear_packed_groups.h"

namespace sidewinder::SW_LEVEL {

// 16 bits each of a vector; unlike int16_t they may wrap around, as they do where x is not finite.
typedef uint16_t UshortVec __attribute__((vector_size(kVecBytes)));

struct PackedInt4 {
    static constexpr int kTileRows = 6;
    static constexpr int64_t kUnitInputs = 8, kUnitWords = 2;
    static constexpr int64_t kExactUnits = 4;  // whose sums fit into 16 bits

    static PackedRows arrange(const LinearArgs& a) {
        return arrange_groups(a, 1, [&](const float* values, uint32_t* words) {
            return round_to_bytes(values, a.group_size, 8, words);
        });
    }

    // Four unsigned weights in each lane: the lower halves of bytes, or the upper ones.
    static SW_INLINE IntVec weights_of(IntVec bytes, int half) {
        const UintVec shifted = half == 0 ? (UintVec)bytes : (UintVec)bytes >> 4;
        return (IntVec)(shifted & 0x0f0f0f0fu);
    }

    static SW_INLINE UshortVec products(IntVec weights, IntVec x) {
        return (UshortVec)multiply_bytes(weights, x);
    }

    template <int M, int Lines>
    static void multiply(const PackedTile& t) {
        multiply_groups<PackedInt4, M, Lines>(t);
    }

    // The sums of a group's products.
    template <int M, int V, int Lines>
    static SW_INLINE void sum_exactly(const PackedTile& t, int first, int64_t u, int64_t units,
                                      IntVec (&totals)[M][V]) {
        multiply_units<M, V, Lines>(t, first, u, smaller(kExactUnits, units), totals);
        for (int64_t j = kExactUnits; j < units; j += kExactUnits) {
            IntVec more[M][V];
            multiply_units<M, V, Lines>(t, first, u + j, smaller(kExactUnits, units - j), more);
            for (int m = 0; m < M; ++m) {
                for (int v = 0; v < V; ++v) totals[m][v] += more[m][v];
            }
        }
    }

    // The same over kExactUnits units at most.
    template <int M, int V, int Lines>
    static SW_INLINE void multiply_units(const PackedTile& t, int first, int64_t u, int64_t units,
                                         IntVec (&totals)[M][V]) {
        Vec sums[M][V] = {};
        add_units<PackedInt4, Lines>(t, first, u, units, sums);
        const ShortVec ones = ShortVec{} + int16_t{1};
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) totals[m][v] = multiply_pairs((ShortVec)sums[m][v], ones);
        }
    }
};

}  // namespace sidewinder::SW_LEVEL
