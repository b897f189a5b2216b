// Linear map of any number of rows: dot products for a few, outer products for more.
#pragma once

#include "linear_integer.h"
#include "linear_outer.h"
#include "linear_tile.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

// Sums of M rows of x with up to R weight rows from `output` on, whole rows one after another, so
// that memory is read in order.
template <class W, int M, int R>
inline void dot_outputs(const LinearArgs& a, const typename W::X* x, int64_t x_stride,
                        int64_t output) {
    float sums[R * kTileX];
    for (int64_t k = 0; k < a.inputs; k += kDepth) {
        const WeightView<W> view{
            static_cast<const typename W::Element*>(at(a.weight, output, k)), a.weight.stride};
        dot_tile<W, M, R>(x + k, x_stride, view, smaller(kDepth, a.inputs - k), k == 0, sums);
    }
    float bias[R + kLanes], row[R + kLanes];
    load_optional_row(bias, a.bias, output, R, 0.0f);
    for (int64_t m = 0; m < M; ++m) {
        for (int r = 0; r < R; ++r) row[r] = sums[r * kTileX + m] + bias[r];
        store_row(at(a.y, m, output), a.y.dtype, row, R);
    }
}

template <class W, int M>
inline void dot_rows(const LinearArgs& a, const typename W::X* x, int64_t x_stride) {
    constexpr int R = W::tile_weights(M);
    const int64_t tiles = (a.outputs + R - 1) / R, work = R * a.inputs * (M + 2);
    parallel(tiles, 1 + (1 << 17) / work, [&](int64_t begin, int64_t end) {
        const int64_t stop = smaller(end * R, a.outputs);
        int64_t o = begin * R;
        for (; o + R <= stop; o += R) dot_outputs<W, M, R>(a, x, x_stride, o);
        for (; o < stop; ++o) dot_outputs<W, M, 1>(a, x, x_stride, o);
    });
}

template <class W>
inline void linear_dot(const LinearArgs& a) {
    using X = typename W::X;
    const int64_t stride = round_up(a.inputs, W::kStep);
    X* x = static_cast<X*>(scratch(Scratch::call, a.rows * stride * sizeof(X)));
    for (int64_t m = 0; m < a.rows; ++m) {
        W::arrange(x + m * stride, at(a.x, m), a.x.dtype, a.inputs);
    }
    switch (a.rows) {
        case 0: return;
        case 1: return dot_rows<W, 1>(a, x, stride);
        case 2: return dot_rows<W, 2>(a, x, stride);
        case 3: return dot_rows<W, 3>(a, x, stride);
        default: return dot_rows<W, 4>(a, x, stride);
    }
}

template <class W>
inline void linear_with(const LinearArgs& a) {
    a.rows <= kTileX ? linear_dot<W>(a) : linear_outer<W>(a);
}

template <int Bits>
inline void linear_integer(const LinearArgs& a) {
    a.rows <= kFewRows ? linear_few_rows<Bits>(a) : linear_outer<IntegerWeights<Bits>>(a);
}

inline void linear(const LinearArgs& a) {
    if (a.weight.dtype == DType::f32) return linear_with<F32Weights>(a);
    if (a.weight.dtype == DType::i8) {
        return a.bits == 4 ? linear_integer<4>(a) : linear_integer<8>(a);
    }
    return linear_with<Bf16Weights>(a);
}

}  // namespace sidewinder::SW_LEVEL
