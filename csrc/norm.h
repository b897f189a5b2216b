// RMS norm with the residual sum before it, of one tensor's rows or two's, and Mamba-2's gated norm.
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

inline float sum_of_squares(const float* row, int64_t n) {
    Vec even = splat(0.0f), odd = splat(0.0f);
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        even = fma(load(row + i), load(row + i), even);
        odd = fma(load(row + i + kLanes), load(row + i + kLanes), odd);
    }
    for (; i + kLanes <= n; i += kLanes) even = fma(load(row + i), load(row + i), even);
    float total = sum(even + odd);
    for (; i < n; ++i) total += row[i] * row[i];
    return total;
}

inline float reciprocal_rms(const float* row, int64_t n, float eps) {
    return 1.0f / __builtin_sqrtf(sum_of_squares(row, n) / static_cast<float>(n) + eps);
}

// a *= b over n elements rounded up to whole vectors.
inline void multiply(float* a, const float* b, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes) store(a + i, load(a + i) * load(b + i));
}

inline void scale(float* row, int64_t n, float factor) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(row + i, load(row + i) * splat(factor));
    for (; i < n; ++i) row[i] *= factor;
}

inline void norm_row(const NormArgs& a, int64_t t, float* row, float* other, const float* weight) {
    load_row(row, at(a.x, t), a.x.dtype, a.width);
    if (a.residual.data != nullptr) {
        load_row(other, at(a.residual, t), a.residual.dtype, a.width);
        for (int64_t i = 0; i < a.width; i += kLanes) {
            store(row + i, load(row + i) + load(other + i));
        }
        store_row(at(a.sum, t), a.sum.dtype, row, a.width);
        load_row(row, at(a.sum, t), a.sum.dtype, a.width);  // as rounded
    }
    const int64_t width = a.width + a.beside_width;
    if (a.beside_width > 0) {
        load_row(row + a.width, at(a.beside, t), a.beside.dtype, a.beside_width);
    }
    scale(row, width, reciprocal_rms(row, width, a.eps));
    if (weight != nullptr) multiply(row, weight, width);
    store_row(at(a.y, t), a.y.dtype, row, width);
}

inline void rms_norm(const NormArgs& a) {
    // The second part is stored in whole vectors from the first one's end on.
    const int64_t padded = round_up(a.width, kLanes) + round_up(a.beside_width, kLanes);
    parallel(a.rows, 1 + (1 << 15) / a.width, [&](int64_t begin, int64_t end) {
        float* row = static_cast<float*>(scratch(Scratch::range, 3 * padded * sizeof(float)));
        float* weight = a.weight.data == nullptr ? nullptr : row + 2 * padded;
        if (weight != nullptr) {
            load_row(weight, at(a.weight, 0), a.weight.dtype, a.width + a.beside_width);
        }
        for (int64_t t = begin; t < end; ++t) norm_row(a, t, row, row + padded, weight);
    });
}

inline void gated_norm_row(const GatedNormArgs& a, int64_t t, float* row, float* gate,
                           const float* weight) {
    load_row(row, at(a.x, t), a.x.dtype, a.width);
    load_row(gate, at(a.z, t), a.z.dtype, a.width);
    for (int64_t i = 0; i < a.width; i += kLanes) store(gate + i, silu(load(gate + i)));
    if (!a.norm_before_gate) multiply(row, gate, a.width);
    for (int64_t c = 0; c < a.width; c += a.group_size) {
        scale(row + c, a.group_size, reciprocal_rms(row + c, a.group_size, a.eps));
    }
    multiply(row, weight, a.width);
    if (a.norm_before_gate) multiply(row, gate, a.width);
    store_row(at(a.y, t), a.y.dtype, row, a.width);
}

inline void gated_rms_norm(const GatedNormArgs& a) {
    const int64_t padded = round_up(a.width, kLanes);
    parallel(a.rows, 1 + (1 << 14) / a.width, [&](int64_t begin, int64_t end) {
        float* row = static_cast<float*>(scratch(Scratch::range, 3 * padded * sizeof(float)));
        float* weight = row + 2 * padded;
        load_row(weight, at(a.weight, 0), a.weight.dtype, a.width);
        for (int64_t t = begin; t < end; ++t) gated_norm_row(a, t, row, row + padded, weight);
    });
}

inline void gated_squares(const GatedSquaresArgs& a) {
    const int64_t padded = round_up(a.width, kLanes);
    parallel(a.rows, 1 + (1 << 14) / a.width, [&](int64_t begin, int64_t end) {
        float* row = static_cast<float*>(scratch(Scratch::range, 3 * padded * sizeof(float)));
        float* gate = row + padded;
        float* weight = gate + padded;
        load_row(weight, at(a.weight, 0), a.weight.dtype, a.width);
        for (int64_t t = begin; t < end; ++t) {
            load_row(row, at(a.x, t), a.x.dtype, a.width);
            load_row(gate, at(a.z, t), a.z.dtype, a.width);
            for (int64_t i = 0; i < a.width; i += kLanes) store(gate + i, silu(load(gate + i)));
            float squares = sum_of_squares(row, a.width);
            multiply(row, gate, a.width);
            if (!a.norm_before_gate) squares = sum_of_squares(row, a.width);
            std::memcpy(at(a.squares, t), &squares, sizeof squares);
            multiply(row, weight, a.width);
            store_row(at(a.u, t), a.u.dtype, row, a.width);
        }
    });
}

// The columns after a partial sum: 16 bits would round the scalar, so a remainder follows it.
inline void put_scalar(const WithScalarArgs& a, int64_t t, float scalar) {
    std::memset(at(a.message, t, a.width), 0, a.columns * element_size(a.message.dtype));
    void* own = at(a.message, t, a.width + a.own);
    if (a.message.dtype == DType::f32) {
        std::memcpy(own, &scalar, sizeof scalar);
        return;
    }
    bf16 rounded[kLanes], remainder[kLanes];
    store(rounded, splat(scalar));
    store(remainder, splat(scalar) - load(rounded));
    const bf16 parts[2] = {rounded[0], remainder[0]};
    std::memcpy(own, parts, sizeof parts);
}

inline void with_scalar(const WithScalarArgs& a) {
    const int64_t bytes = a.width * element_size(a.partial.dtype);
    parallel(a.rows, 1 + (1 << 15) / a.width, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            float squares;
            std::memcpy(&squares, at(a.squares, t), sizeof squares);
            std::memcpy(at(a.message, t), at(a.partial, t), bytes);
            put_scalar(a, t, squares / a.divisor);
        }
    });
}

inline void add_rows(const AddRowsArgs& a) {
    parallel(a.rows, 1 + (1 << 15) / a.width, [&](int64_t begin, int64_t end) {
        const int64_t padded = round_up(a.width, kLanes);
        float* x = static_cast<float*>(scratch(Scratch::range, 2 * padded * sizeof(float)));
        float* y = x + padded;
        for (int64_t t = begin; t < end; ++t) {
            load_row(x, at(a.x, t), a.x.dtype, a.width);
            load_row(y, at(a.y, t), a.y.dtype, a.width);
            for (int64_t i = 0; i < a.width; i += kLanes) store(x + i, load(x + i) + load(y + i));
            store_row(at(a.total, t), a.total.dtype, x, a.width);
        }
    });
}

inline void scaled_rows(const ScaledRowsArgs& a) {
    parallel(a.rows, 1 + (1 << 15) / a.width, [&](int64_t begin, int64_t end) {
        const int64_t padded = round_up(larger(a.width, a.parts), kLanes);
        float* row = static_cast<float*>(scratch(Scratch::range, padded * sizeof(float)));
        for (int64_t t = begin; t < end; ++t) {
            load_row(row, at(a.mean_squares, t), a.mean_squares.dtype, a.parts);
            float mean_square = 0.0f;
            for (int64_t i = 0; i < a.parts; ++i) mean_square += row[i];
            load_row(row, at(a.x, t), a.x.dtype, a.width);
            scale(row, a.width, 1.0f / __builtin_sqrtf(mean_square + a.eps));
            store_row(at(a.y, t), a.y.dtype, row, a.width);
        }
    });
}

}  // namespace sidewinder::SW_LEVEL
