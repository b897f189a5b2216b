// Tiles of outer products: vectors of rows of x times a few weights, for one lane of the inputs.
#pragma once

#include "simd.h"

namespace sidewinder::SW_LEVEL {

constexpr int kMostVecs = 4;  // vectors of rows in a group
constexpr int64_t kGroupRows = kMostVecs * kLanes;
constexpr int64_t kOutputs = 12;  // of a block
constexpr int64_t kChunk = 256;   // inputs: a block's weights stay in the first-level cache
constexpr int64_t kSums = kOutputs * kGroupRows;

// Weight rows of a tile of v vectors: as many as the registers hold. All divide kOutputs.
constexpr int outer_weights(int v) {
#if defined(SW_MANY_REGISTERS)
    return v <= 2 ? 12 : 6;
#else
    return 12 / v;
#endif
}

// sums[r * kGroupRows + m] (+)= one lane's products of R weight rows with V vectors of x. x is
// [steps, V vectors]; a weight row is kChunk inputs, of which every kLanes-th is of this lane.
template <class W, int V, int R>
void outer_tile(const float* x, const float* weights, int64_t steps, bool first, float* sums) {
    Vec totals[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            totals[r][v] = first ? splat(0.0f) : load(sums + r * kGroupRows + v * kLanes);
        }
    }
    for (int64_t j = 0; j < steps; ++j) {
        const float* unit = weights + j * kLanes;
        const float* row = x + j * V * kLanes;
        if constexpr (V >= R) {  // the fewer of the two stay in registers
            Vec each[R];
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) each[r] = splat(unit[r * kChunk]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const Vec rows = in_register(load(row + v * kLanes));
#pragma GCC unroll 12
                for (int r = 0; r < R; ++r) {
                    totals[r][v] = W::multiply_add(each[r], rows, totals[r][v]);
                }
            }
        } else {
            Vec rows[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) rows[v] = in_register(load(row + v * kLanes));
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const Vec each = splat(unit[r * kChunk]);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    totals[r][v] = W::multiply_add(each, rows[v], totals[r][v]);
                }
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(sums + r * kGroupRows + v * kLanes, totals[r][v]);
    }
}

// The same for a block of outputs.
template <class W, int V>
inline void outer_block(const float* x, const float* weights, int64_t outputs, int64_t steps,
                        bool first, float* sums) {
    constexpr int R = outer_weights(V);
    int64_t o = 0;
    for (; o + R <= outputs; o += R) {
        outer_tile<W, V, R>(x, weights + o * kChunk, steps, first, sums + o * kGroupRows);
    }
    for (; o < outputs; ++o) {
        outer_tile<W, V, 1>(x, weights + o * kChunk, steps, first, sums + o * kGroupRows);
    }
}

template <class W>
inline void outer_block(int64_t vecs, const float* x, const float* weights, int64_t outputs,
                        int64_t steps, bool first, float* sums) {
    switch (vecs) {
        case 1: return outer_block<W, 1>(x, weights, outputs, steps, first, sums);
        case 2: return outer_block<W, 2>(x, weights, outputs, steps, first, sums);
        case 3: return outer_block<W, 3>(x, weights, outputs, steps, first, sums);
        default: return outer_block<W, 4>(x, weights, outputs, steps, first, sums);
    }
}

// The sum over lanes in the order of `sum4`: halves are folded down to four lanes.
SW_INLINE Vec tree_sum(const float* lanes, int64_t stride) {
    Vec sums[kLanes];
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) sums[l] = load(lanes + l * stride);
#pragma GCC unroll 4
    for (int half = kLanes / 2; half >= 4; half /= 2) {
#pragma GCC unroll 8
        for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
    }
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

}  // namespace sidewinder::SW_LEVEL
