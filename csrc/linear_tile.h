// Tiles of dot products: M rows of x against R rows of a weight, along the inputs.
//
// Weights stay as they are stored, [outputs, inputs], and stream through once. Each output is one
// chain of multiply-adds per lane, in an order that depends on nothing but the number of inputs, so a
// row's result is the same in every batch and on any number of threads.
#pragma once

#include "rows.h"

namespace sidewinder::SW_LEVEL {

constexpr int kTileX = 4;       // rows of x in a full tile
constexpr int64_t kDepth = 1024;  // inputs of one block: four rows of x stay in the first-level cache

// A weight format: how a step of consecutive weights becomes `kParts` vectors that multiply the
// same number of vectors of x. `arrange` lays out x to match, padded to whole steps; `tile_weights`
// is the number of weight rows in a tile of m rows of x, as many as the registers hold. `widen` makes
// the format `Wide` of it, for the same x and padded likewise, which pays when many rows use it.
// `kPerElement` weights share a stored element.
constexpr int f32_tile_weights(int m) {
#if defined(SW_MANY_REGISTERS)
    return m < 4 ? 8 : 6;
#else
    return m == 1 ? 8 : m == 2 ? 4 : 3;
#endif
}

struct F32Weights {
    using Element = float;
    using X = float;
    using Wide = F32Weights;
    static constexpr int kParts = 1;
    static constexpr int64_t kPerElement = 1;
    static constexpr int64_t kStep = kLanes;
    static constexpr int tile_weights(int m) { return f32_tile_weights(m); }
    static SW_INLINE Vec part(const float* w, int) { return load(w); }
    static SW_INLINE Vec take(const float* x) { return in_register(load(x)); }
    static SW_INLINE Vec multiply_add(Vec w, Vec x, Vec sum) { return fma(w, x, sum); }
    static void arrange(float* dst, const void* src, DType dtype, int64_t n) {
        load_row(dst, src, dtype, n);
    }
    static void widen(float* dst, const LinearArgs& a, int64_t output, int64_t k, int64_t n) {
        load_row(dst, at(a.weight, output, k), DType::f32, n);
    }
};

// Two vectors per step: the even and the odd weights, each widened by one instruction.
struct Bf16Weights {
    using Element = bf16;
    using X = float;
    using Wide = F32Weights;
    static constexpr int kParts = 2;
    static constexpr int64_t kPerElement = 1;
    static constexpr int64_t kStep = 2 * kLanes;
    static constexpr int tile_weights(int m) {
        return m == 4 && kVecBytes < 64 ? 2 : f32_tile_weights(m);
    }
    static SW_INLINE Vec part(const bf16* w, int odd) {
        const IntVec raw = load_raw(w);
        return odd ? odd_halves(raw) : even_halves(raw);
    }
    static SW_INLINE Vec take(const float* x) { return in_register(load(x)); }
    static SW_INLINE Vec multiply_add(Vec w, Vec x, Vec sum) { return fma(w, x, sum); }
    static void arrange(float* dst, const void* src, DType dtype, int64_t n) {
        int64_t i = 0;
        if (dtype == DType::bf16) {
            for (; i + kStep <= n; i += kStep) {
                const IntVec raw = load_raw(static_cast<const bf16*>(src) + i);
                store(dst + i, even_halves(raw));
                store(dst + i + kLanes, odd_halves(raw));
            }
        }
        for (; i < n; i += kStep) {
            float natural[kStep] = {};
            const char* from = static_cast<const char*>(src) + i * element_size(dtype);
            load_row(natural, from, dtype, smaller(kStep, n - i));
            for (int64_t j = 0; j < kLanes; ++j) {
                dst[i + j] = natural[2 * j];
                dst[i + kLanes + j] = natural[2 * j + 1];
            }
        }
    }
    static void widen(float* dst, const LinearArgs& a, int64_t output, int64_t k, int64_t n) {
        arrange(dst, at(a.weight, output, k), DType::bf16, n);
    }
};

// Part of a weight matrix: rows `stride` apart.
template <class W>
struct WeightView {
    const typename W::Element* data;
    int64_t stride;
};

template <class W, int M, int R>
SW_INLINE void accumulate(const typename W::X* x, int64_t x_stride, const typename W::Element* w,
                          int64_t stride, int64_t n, Vec (&sums)[R][M]) {
    constexpr int64_t kPartStep = W::kStep / W::kParts;
    for (int64_t k = 0; k < n; k += W::kStep) {
        // The next tile's weights, in time: rows are too short for the processor to foresee them.
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) __builtin_prefetch(w + (R + r) * stride + k);
#pragma GCC unroll 2
        for (int part = 0; part < W::kParts; ++part) {
            Vec weights[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) weights[r] = W::part(w + r * stride + k, part);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const Vec row = W::take(x + m * x_stride + k + part * kPartStep);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    sums[r][m] = W::multiply_add(weights[r], row, sums[r][m]);
                }
            }
        }
    }
}

// The same for up to a whole span of inputs, the last step of which may be partial: x is padded
// with zeros, and the weights are copied so that nothing behind their row is read.
template <class W, int M, int R>
SW_INLINE void accumulate_span(const typename W::X* x, int64_t x_stride,
                               const typename W::Element* w, int64_t stride, int64_t n,
                               Vec (&sums)[R][M]) {
    const int64_t whole = n / W::kStep * W::kStep;
    accumulate<W, M, R>(x, x_stride, w, stride, whole, sums);
    if (whole < n) {
        typename W::Element tail[R * W::kStep] = {};
        for (int r = 0; r < R; ++r) {
            std::memcpy(tail + r * W::kStep, w + r * stride + whole, (n - whole) * sizeof *w);
        }
        accumulate<W, M, R>(x + whole, x_stride, tail, W::kStep, W::kStep, sums);
    }
}

template <int M, int R>
SW_INLINE void set_zero(Vec (&sums)[R][M]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sums[r][m] = splat(0.0f);
    }
}

// out[r * kTileX + m] (+)= lane sums.
template <int M, int R>
SW_INLINE void store_sums(const Vec (&sums)[R][M], bool first, float* out) {
    const Vec zero = splat(0.0f);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        Quad total = sum4(sums[r][0], M > 1 ? sums[r][M > 1 ? 1 : 0] : zero,
                          M > 2 ? sums[r][M > 2 ? 2 : 0] : zero,
                          M > 3 ? sums[r][M > 3 ? 3 : 0] : zero);
        if (!first) total += load_quad(out + r * kTileX);
        std::memcpy(out + r * kTileX, &total, sizeof total);
    }
}

// out[r * kTileX + m] (+)= dot products over n inputs of the view's first weights.
template <class W, int M, int R>
void dot_tile(const typename W::X* x, int64_t x_stride, const WeightView<W>& view, int64_t n,
              bool first, float* out) {
    Vec sums[R][M];
    set_zero(sums);
    accumulate_span<W, M, R>(x, x_stride, view.data, view.stride, n, sums);
    store_sums(sums, first, out);
}

}  // namespace sidewinder::SW_LEVEL
