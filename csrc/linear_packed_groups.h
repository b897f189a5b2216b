// Rows of x in integers, a scale for each row and group of inputs, as packed integer weights want them.
#pragma once

#include "linear_integer.h"
#include "linear_packed.h"
#include "simd_bytes.h"

namespace sidewinder::SW_LEVEL {

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

// A group in signed bytes, 127 the largest; `offset` is the weights'.
inline RowGroup round_to_bytes(const float* values, int64_t n, int32_t offset, uint32_t* words) {
    typedef uint32_t UintVec __attribute__((vector_size(kVecBytes)));
    const float scale = largest_magnitude(values, n) / 127;  // NaN where a value is not finite
    const Vec inverse = splat(scale > 0.0f ? 1.0f / scale : 0.0f);
    UintVec totals = {};
    for (int64_t i = 0; i < n; i += kLanes) {
        const IntVec integers = to_nearest(load(values + i) * inverse);
        totals += (UintVec)integers;
        store_bytes(reinterpret_cast<char*>(words) + i, integers);
    }
    // Of what is not finite the sum is anything: unsigned numbers may wrap around.
    uint32_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += totals[i];
    return {scale, static_cast<int32_t>(static_cast<uint32_t>(offset) * total)};
}

}  // namespace sidewinder::SW_LEVEL
