// Packed weights in bfloat16: two neighbouring inputs a lane, as vdpbf16ps multiplies them.
#pragma once

#include "linear_packed.h"

namespace sidewinder::SW_LEVEL {

template <int M>
SW_INLINE void load_sums(const float* sums, Vec (&totals)[M][kVecsOfPanel]) {
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecsOfPanel; ++v) totals[m][v] = load(sums + m * kPanel + v * kLanes);
    }
}

template <int M>
SW_INLINE void store_sums(float* sums, const Vec (&totals)[M][kVecsOfPanel]) {
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecsOfPanel; ++v) store(sums + m * kPanel + v * kLanes, totals[m][v]);
    }
}

SW_INLINE __m512i vector_at(const char* unit, int v) {
    return _mm512_loadu_si512(unit + v * 64);
}

struct PackedBf16 {
    static constexpr int kTileRows = 6;
    static constexpr int64_t kUnitInputs = 2, kUnitWords = 1;

    // Rows are read where they lie, if pairs begin at words and the last one is whole.
    static PackedRows arrange(const LinearArgs& a) {
        const bool as_is = a.inputs % 2 == 0 && a.x.stride % 2 == 0 &&
                           reinterpret_cast<uintptr_t>(a.x.data) % 4 == 0;
        if (as_is) return {static_cast<const uint32_t*>(a.x.data), a.x.stride / 2, nullptr, 0};
        const int64_t words = (a.inputs + 1) / 2;
        auto* rows = static_cast<uint32_t*>(scratch(Scratch::call, a.rows * words * 4));
        for (int64_t m = 0; m < a.rows; ++m) {
            rows[m * words + words - 1] = 0;
            std::memcpy(rows + m * words, at(a.x, m), a.inputs * sizeof(bf16));
        }
        return {rows, words, nullptr, 0};
    }

    template <int M, int Lines>
    static void multiply(const PackedTile& t) {
        Vec totals[M][kVecsOfPanel];
        load_sums(t.sums, totals);
        for (int64_t j = 0; j < t.units; ++j) {
            ask<Lines>(t.ahead + j * kUnitBytes);
            __m512i weights[kVecsOfPanel];
#pragma GCC unroll 4
            for (int v = 0; v < kVecsOfPanel; ++v) {
                weights[v] = vector_at(t.weights + j * kUnitBytes, v);
            }
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m) {
                const __m512i pair = _mm512_set1_epi32(static_cast<int>(t.x[m * t.x_stride + j]));
#pragma GCC unroll 4
                for (int v = 0; v < kVecsOfPanel; ++v) {
                    totals[m][v] = (Vec)_mm512_dpbf16_ps((__m512)totals[m][v], (__m512bh)weights[v],
                                                         (__m512bh)pair);
                }
            }
        }
        store_sums(t.sums, totals);
    }
};

}  // namespace sidewinder::SW_LEVEL
