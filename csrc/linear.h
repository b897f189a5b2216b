// Linear map of a few rows (decode batches) or many (where no better matrix product exists).
#pragma once

#include "linear_i8.h"
#include "linear_tile.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kPanelRows = 64;  // rows of x that one pass over the weights serves
constexpr int64_t kOutputs = 24;    // outputs of one block: their weights stay in the second-level cache

// Up to kPanelRows rows of x, arranged for the format, and the outputs they are for.
template <class W>
struct Panel {
    const typename W::X* x;
    int64_t x_stride;
    int64_t first_row, rows;
    const LinearArgs& args;

    int64_t blocks() const { return (rows + kTileX - 1) / kTileX; }
    // Row blocks differ by one row at most: a lone last row would run at half speed.
    int64_t block_begin(int64_t b) const { return rows * b / blocks(); }
};

template <class W>
inline WeightView<W> view_weights(const LinearArgs& a, int64_t output, int64_t input) {
    return {static_cast<const typename W::Element*>(at(a.weight, output, input)), a.weight.stride};
}

template <class W, int M>
inline void dot_block(const typename W::X* x, int64_t x_stride, WeightView<W> view, int64_t outputs,
                      int64_t n, bool first, float* sums) {
    constexpr int R = W::tile_weights(M);
    for (int64_t o = 0; o < outputs;) {
        const bool full = o + R <= outputs;
        if (full) dot_tile<W, M, R>(x, x_stride, view, n, first, sums + o * kTileX);
        else dot_tile<W, M, 1>(x, x_stride, view, n, first, sums + o * kTileX);
        const int64_t done = full ? R : 1;
        view.data += done * view.stride;
        o += done;
    }
}

template <class W>
inline void dot_block(int64_t rows, const typename W::X* x, int64_t x_stride,
                      const WeightView<W>& view, int64_t outputs, int64_t n, bool first,
                      float* sums) {
    switch (rows) {
        case 1: return dot_block<W, 1>(x, x_stride, view, outputs, n, first, sums);
        case 2: return dot_block<W, 2>(x, x_stride, view, outputs, n, first, sums);
        case 3: return dot_block<W, 3>(x, x_stride, view, outputs, n, first, sums);
        default: return dot_block<W, 4>(x, x_stride, view, outputs, n, first, sums);
    }
}

// Rounds and stores the block's outputs; sums are [row block, output, row in block].
template <class W>
inline void store_outputs(const Panel<W>& panel, int64_t output, int64_t outputs,
                          const float* sums) {
    const LinearArgs& a = panel.args;
    float bias[kOutputs + kLanes], row[kOutputs + kLanes];
    load_optional_row(bias, a.bias, output, outputs, 0.0f);
    for (int64_t b = 0; b < panel.blocks(); ++b) {
        const int64_t begin = panel.block_begin(b), end = panel.block_begin(b + 1);
        for (int64_t m = begin; m < end; ++m) {
            const float* from = sums + b * kOutputs * kTileX + (m - begin);
            for (int64_t o = 0; o < outputs; ++o) row[o] = from[o * kTileX] + bias[o];
            store_row(at(a.y, panel.first_row + m, output), a.y.dtype, row, outputs);
        }
    }
}

// n weights of each output, from input k on, in float32 and arranged like x.
template <class W>
inline WeightView<F32Weights> widen(const LinearArgs& a, int64_t output, int64_t outputs, int64_t k,
                                    int64_t n, float* wide) {
    for (int64_t o = 0; o < outputs; ++o) W::widen(wide + o * kDepth, a, output + o, k, n);
    return {wide, kDepth};
}

template <class W>
inline void block_outputs(const Panel<W>& panel, int64_t output, int64_t outputs) {
    const int64_t inputs = panel.args.inputs;
    constexpr int64_t kSums = (kPanelRows / kTileX) * kOutputs * kTileX;
    float* sums = static_cast<float*>(
        scratch(Scratch::range, (kSums + kOutputs * kDepth + kLanes) * sizeof(float)));
    for (int64_t k = 0; k < inputs; k += kDepth) {
        const int64_t n = smaller(kDepth, inputs - k);
        auto all_rows = [&](const auto& weights, int64_t padded) {
            for (int64_t b = 0; b < panel.blocks(); ++b) {
                const int64_t begin = panel.block_begin(b), rows = panel.block_begin(b + 1) - begin;
                dot_block(rows, panel.x + begin * panel.x_stride + k, panel.x_stride, weights,
                          outputs, padded, k == 0, sums + b * kOutputs * kTileX);
            }
        };
        // Widened once for all rows, and then padded like x.
        const bool wide = W::kWidens && (panel.blocks() > 1 || !W::kDirect);
        if constexpr (W::kWidens) {
            if (wide) {
                const auto weights = widen<W>(panel.args, output, outputs, k, n, sums + kSums);
                all_rows(weights, round_up(n, W::kStep));
            }
        }
        if constexpr (W::kDirect) {
            if (!wide) all_rows(view_weights<W>(panel.args, output, k), n);
        }
    }
    store_outputs(panel, output, outputs, sums);
}

template <class W>
inline void linear_panel(const Panel<W>& panel) {
    // One row block: whole weight rows, tile by tile, so that memory is read in order.
    const int64_t step = panel.blocks() > 1 ? kOutputs : W::tile_weights(panel.rows);
    const int64_t outputs = panel.args.outputs;
    const int64_t blocks = (outputs + step - 1) / step;
    const int64_t work = step * panel.args.inputs * (panel.rows + 2);
    parallel(blocks, 1 + (1 << 17) / work, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            block_outputs(panel, block * step, smaller(step, outputs - block * step));
        }
    });
}

template <class W>
inline void linear_with(const LinearArgs& a) {
    using X = typename W::X;
    const int64_t stride = round_up(a.inputs, W::kStep);
    const int64_t panels = (a.rows + kPanelRows - 1) / kPanelRows;
    for (int64_t p = 0; p < panels; ++p) {
        const int64_t first = a.rows * p / panels, rows = a.rows * (p + 1) / panels - first;
        X* x = static_cast<X*>(scratch(Scratch::call, rows * stride * sizeof(X)));
        for (int64_t m = 0; m < rows; ++m) {
            W::arrange(x + m * stride, at(a.x, first + m), a.x.dtype, a.inputs);
        }
        linear_panel(Panel<W>{x, stride, first, rows, a});
    }
}

inline void linear(const LinearArgs& a) {
    if (a.weight.dtype == DType::f32) return linear_with<F32Weights>(a);
    if (a.weight.dtype == DType::i8) {
        return a.rows <= kTileX ? linear_i8_few_rows(a) : linear_with<I8Weights>(a);
    }
#if defined(SW_AVX512_BF16)
    if (a.x.dtype == DType::bf16) return linear_with<Bf16Pairs>(a);
#endif
    return linear_with<Bf16Weights>(a);
}

}  // namespace sidewinder::SW_LEVEL
