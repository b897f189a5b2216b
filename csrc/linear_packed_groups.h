// Rows of x in integers, a scale for each row and group of inputs, as packed integer weights want them.
#pragma once

#include "linear_integer.h"
#include "linear_packed.h"
#include "simd_bytes.h"

namespace sidewinder::SW_LEVEL {

typedef uint32_t UintVec __attribute__((vector_size(kVecBytes)));

// Rounds every group of every row: `round(values, words)` writes group_size * bytes / 4 words. The
// last group of a row is padded with zeros.
template <class Round>
inline PackedRows arrange_groups(const LinearArgs& a, int64_t bytes_of_value, Round round) {
    const int64_t groups = (a.inputs + a.group_size - 1) / a.group_size;
    const int64_t width = groups * a.group_size, stride = width / 4 * bytes_of_value;
    const int64_t bytes = a.rows * (stride * sizeof(uint32_t) + groups * sizeof(RowGroup));
    auto* row_groups = static_cast<RowGroup*>(scratch(Scratch::call, bytes));
    auto* words = reinterpret_cast<uint32_t*>(row_groups + a.rows * groups);
    parallel(a.rows, 1 + (1 << 14) / width, [&](int64_t begin, int64_t end) {
        auto* wide = static_cast<float*>(scratch(Scratch::range, width * sizeof(float)));
        zero(wide, width);
        for (int64_t m = begin; m < end; ++m) {
            load_row(wide, at(a.x, m), a.x.dtype, a.inputs);
            for (int64_t g = 0; g < groups; ++g) {
                const int64_t first = g * a.group_size;
                row_groups[m * groups + g] =
                    round(wide + first, words + m * stride + first / 4 * bytes_of_value);
            }
        }
    });
    return {words, stride, row_groups, groups};
}

// A group in integers, `largest` of them the largest, each vector of which goes to `put(i, integers)`;
// `offset` is the weights'.
template <class Put>
inline RowGroup round_group(const float* values, int64_t n, int largest, int32_t offset, Put put) {
    const float scale = largest_magnitude(values, n) / largest;  // NaN where a value is not finite
    const Vec inverse = splat(scale > 0.0f ? 1.0f / scale : 0.0f);
    UintVec totals = {};
    for (int64_t i = 0; i < n; i += kLanes) {
        const IntVec integers = to_nearest(load(values + i) * inverse);
        totals += (UintVec)integers;
        put(i, integers);
    }
    // Of what is not finite the sum is anything: unsigned numbers may wrap around.
    uint32_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += totals[i];
    return {scale, static_cast<int32_t>(static_cast<uint32_t>(offset) * total)};
}

// A group in signed bytes.
inline RowGroup round_to_bytes(const float* values, int64_t n, int32_t offset, uint32_t* words) {
    return round_group(values, n, 127, offset, [&](int64_t i, IntVec integers) {
        store_bytes(reinterpret_cast<char*>(words) + i, integers);
    });
}

// Adds a group's exact sums of a tile's rows and V vectors of outputs, from the panel's `first` on,
// times both scales.
template <int M, int V>
SW_INLINE void add_group(const PackedTile& t, int first, int64_t g, const IntVec (&exact)[M][V]) {
    Vec scales[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) scales[v] = load(t.scales + g * kPanel + (first + v) * kLanes);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
        const RowGroup& group = t.row_groups[m * t.row_group_stride + g];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const Vec product = __builtin_convertvector(exact[m][v] - group.bias, Vec);
            float* place = t.sums + m * kPanel + (first + v) * kLanes;
            store(place, fma(product, scales[v] * splat(group.scale), load(place)));
        }
    }
}

// Vectors of outputs whose sums stay in registers beside one another, where a tile has up to 6 rows.
constexpr int vecs_at_once([[maybe_unused]] int rows) {
#if defined(SW_MANY_REGISTERS)
    return kVecsOfPanel;
#else
    return rows == 1 ? kVecsOfPanel : rows == 2 ? kVecsOfPanel / 2 : kVecsOfPanel / 4;
#endif
}

// Adds to integer sums, of type V, that are kept as Vec from one addition to the next: so the compiler
// makes products one by one and leaves the sums in registers; else it makes many at once, for which
// there are not enough.
template <class V>
SW_INLINE void add_in_register(Vec& sum, V products) {
    sum = in_register((Vec)((V)sum + products));
}

// Adds the products of some units, for V vectors of outputs from the panel's `first` on. A format says
// what a part of a unit's bytes is as weights, for one word of x, and what to add of their products.
template <class Format, int Lines, int M, int V>
SW_INLINE void add_units(const PackedTile& t, int first, int64_t u, int64_t units, Vec (&sums)[M][V]) {
    for (int64_t j = u; j < u + units; ++j) {
        ask<Lines>(t.ahead + j * kUnitBytes);
        const char* unit = t.weights + j * kUnitBytes + first * kVecBytes;
#pragma GCC unroll 2
        for (int part = 0; part < Format::kUnitWords; ++part) {
            IntVec weights[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                weights[v] = Format::weights_of(load_raw(unit + v * kVecBytes), part);
            }
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m) {
                const uint32_t word = t.x[m * t.x_stride + j * Format::kUnitWords + part];
                const IntVec x = IntVec{} + static_cast<int32_t>(word);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) {
                    add_in_register(sums[m][v], Format::products(weights[v], x));
                }
            }
        }
    }
}

// One group of inputs, and V vectors of outputs.
template <class Format, int M, int V, int Lines>
SW_INLINE void multiply_group(const PackedTile& t, int first, int64_t u, int64_t units, int64_t g) {
    IntVec exact[M][V];
    Format::template sum_exactly<M, V, Lines>(t, first, u, units, exact);
    add_group<M, V>(t, first, g, exact);
}

// A tile, group by group, as many outputs at once as the registers hold: the first of them ask for
// the weights that are needed next.
template <class Format, int M, int Lines>
inline void multiply_groups(const PackedTile& t) {
    constexpr int kVecs = vecs_at_once(M);
    for (int64_t u = 0, g = 0; u < t.units; u += t.group_units, ++g) {
        const int64_t units = smaller(t.group_units, t.units - u);
        multiply_group<Format, M, kVecs, Lines>(t, 0, u, units, g);
        for (int v = kVecs; v < kVecsOfPanel; v += kVecs) {
            multiply_group<Format, M, kVecs, 0>(t, v, u, units, g);
        }
    }
}

}  // namespace sidewinder::SW_LEVEL
