// Rounds matrices to int4: of a few scales of each group the one with the least squared error.
//
// As quantise._to_int4 does, to the bit: what is summed are multiples of 2^-13 below 2^11, so sums in
// float32 are exact in any order, and the rest is done value by value.
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr float kSteps = 8192.0f;
constexpr float kDivisors[] = {6.0f, 6.75f, 7.5f, 8.25f, 9.0f};
constexpr float kLeast = 1e-30f;

// To the nearest integer, ties to even; of magnitudes up to 2^22.
inline Vec nearest(Vec v) {
    const Vec magic = splat(0x1.8p23f);
    return (v + magic) - magic;
}

inline Vec to_int4(Vec v) { return min(splat(7.0f), max(splat(-8.0f), nearest(v))); }

// The first of the values with the largest magnitude; NaN if any is not finite.
inline float largest_value(const float* group, int64_t n) {
    float largest = group[0], poison = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        if (__builtin_fabsf(group[i]) > __builtin_fabsf(largest)) largest = group[i];
        poison += group[i] * 0.0f;
    }
    return largest + poison;
}

// The multiple of -`largest` whose integers explain most of the sum of squares.
inline float best_factor(const float* group, int64_t n, float largest) {
    const Vec unit = splat(-1.0f / largest), steps = splat(kSteps), inverse = splat(1.0f / kSteps);
    float relative[kMaxGroup];
    for (int64_t i = 0; i < n; i += kLanes) {
        store(relative + i, nearest(load(group + i) * unit * steps) * inverse);
    }
    float best = -1.0f, factor = 0.0f;
    for (const float divisor : kDivisors) {
        Vec fits = splat(0.0f), squares = splat(0.0f);
        for (int64_t i = 0; i < n; i += kLanes) {
            const Vec v = load(relative + i), integers = to_int4(v * splat(divisor));
            fits += integers * v;
            squares += integers * integers;
        }
        const float fit = sum(fits), square = sum(squares), explained = fit * fit / square;
        if (explained > best) {
            best = explained;
            factor = fit / square;
        }
    }
    return factor;
}

// Integers of one group; returns its scale, which bfloat16 holds.
inline float round_to_int4(const float* group, int64_t n, int8_t* integers) {
    typedef int8_t Bytes __attribute__((vector_size(kLanes)));
    const float largest = largest_value(group, n);
    float wide[kLanes] = {};
    if (!(__builtin_fabsf(largest) <= kLeast)) wide[0] = best_factor(group, n, largest) * -largest;
    bf16 halves[kLanes];
    store(halves, load(wide));
    store(wide, load(halves));
    const Vec inverse = splat(wide[0] != 0.0f ? 1.0f / wide[0] : 0.0f);
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = to_int4(load(group + i) * inverse);
        const Bytes bytes = __builtin_convertvector(__builtin_convertvector(v, IntVec), Bytes);
        std::memcpy(integers + i, &bytes, sizeof bytes);
    }
    return wide[0];
}

inline void round_int4(const RoundArgs& a) {
    const int64_t groups = (a.inputs + a.group_size - 1) / a.group_size;
    const int64_t width = groups * a.group_size;
    parallel(a.rows, 1 + (1 << 14) / width, [&](int64_t begin, int64_t end) {
        auto* wide = static_cast<float*>(scratch(Scratch::range, (width + groups + kLanes) * 4));
        float* scales = wide + width;
        zero(wide, width);
        for (int64_t m = begin; m < end; ++m) {
            load_row(wide, at(a.x, m), a.x.dtype, a.inputs);
            auto* integers = static_cast<int8_t*>(at(a.integers, m));
            for (int64_t g = 0; g < groups; ++g) {
                const int64_t first = g * a.group_size;
                scales[g] = round_to_int4(wide + first, a.group_size, integers + first);
            }
            store_row(at(a.scales, m), DType::bf16, scales, groups);
        }
    });
}

}  // namespace sidewinder::SW_LEVEL
