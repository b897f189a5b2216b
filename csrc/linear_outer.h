// More rows than a tile of dot products takes: outer products, vectors along the rows of x.
//
// A weight is broadcast and multiplies a vector of rows, so that nothing is summed across lanes. The
// additions of an output still happen in the order of a dot product (linear_tile.h): one chain for
// each of its lanes, then the same tree over the lanes. A row's result is therefore the same in
// every batch, to the bit.
#pragma once

#include "linear_outer_rows.h"
#include "linear_outer_tile.h"
#include "linear_tile.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kArrangedRows = 512;  // rows of x that are arranged at once
constexpr int64_t kBlocks = 4;          // that use a chunk of x one after another

// Weights that are needed soon: some bytes of every row.
struct Ahead {
    const char* data;
    int64_t rows, stride, bytes;

    // A lane's share, so that the requests are spread over the work between.
    void ask(int64_t lane) const {
        for (int64_t byte = lane * 64; byte < bytes; byte += kLanes * 64) {
            for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(data + r * stride + byte);
        }
    }
};

// The next chunk of a block, or after the last one the first chunk of the block `skip` rows on.
template <class W>
inline Ahead next_weights(const LinearArgs& a, int64_t output, int64_t outputs, int64_t index,
                          int64_t skip) {
    const bool last = index + 1 == chunks_of<W>(a);
    const Chunk chunk = chunk_at<W>(a, last ? 0 : index + 1);
    const int64_t row = output + (last ? skip : 0), size = element_size(a.weight.dtype);
    const int64_t rows = larger(0, smaller(outputs, a.outputs - row));
    return {static_cast<const char*>(at(a.weight, row, chunk.k / W::kPerElement)), rows,
            a.weight.stride * size, chunk.n * size / W::kPerElement};
}

// Adds one chunk to the lanes' sums of a group, [kLanes, outputs, kGroupRows].
template <class W>
inline void add_chunk(const Panel& panel, int64_t index, int64_t group, int64_t steps,
                      const float* weights, int64_t outputs, const Ahead& ahead, bool first,
                      float* lanes) {
    const int64_t vecs = panel.group_vecs(group);
    const float* x = panel.group_x(index, group, steps);
    for (int64_t l = 0; l < kLanes; ++l) {
        if (group == 0) ahead.ask(l);
        outer_block<W>(vecs, x + l * steps * vecs * kLanes, weights + l, outputs, steps, first,
                       lanes + l * kSums);
    }
}

// Rounds and stores a group's outputs; sums are [output, kGroupRows].
inline void store_group(const LinearArgs& a, const Panel& panel, int64_t group, int64_t output,
                        int64_t outputs, const float* bias, const float* sums) {
    const int64_t first = panel.first_vec(group) * kLanes;
    const int64_t rows = smaller(panel.group_vecs(group) * kLanes, panel.rows - first);
    float row[kOutputs + kLanes];
    for (int64_t m = 0; m < rows; ++m) {
        for (int64_t o = 0; o < outputs; ++o) row[o] = sums[o * kGroupRows + m] + bias[o];
        store_row(at(a.y, panel.first_row + first + m, output), a.y.dtype, row, outputs);
    }
}

// sums (+)= the lanes' sums of a span, [outputs, kGroupRows].
inline void add_span(const float* lanes, int64_t outputs, int64_t vecs, bool first, float* sums) {
    for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t v = 0; v < vecs; ++v) {
            const int64_t place = o * kGroupRows + v * kLanes;
            const Vec total = tree_sum(lanes + place, kSums);
            store(sums + place, first ? total : total + load(sums + place));
        }
    }
}

// A block's part in one chunk: all groups of the panel. `sums` are by group.
template <class W>
inline void add_block(const LinearArgs& a, const Panel& panel, int64_t index, int64_t output,
                      int64_t outputs, int64_t skip, float* wide, float* lanes, float* sums) {
    constexpr int64_t kSpanChunks = kDepth / kChunk;
    const Chunk chunk = chunk_at<W>(a, index);
    const bool begins = index % kSpanChunks == 0;
    const bool ends = index % kSpanChunks == kSpanChunks - 1 || index == chunks_of<W>(a) - 1;
    const Ahead ahead = next_weights<W>(a, output, outputs, index, skip);
    for (int64_t o = 0; o < outputs; ++o) {
        W::widen(wide + o * kChunk, a, output + o, chunk.k, chunk.n);
    }
    for (int64_t g = 0; g < panel.groups(); ++g) {
        float* group_lanes = lanes + g * kLanes * kSums;
        add_chunk<typename W::Wide>(panel, index, g, chunk.steps, wide, outputs, ahead, begins,
                                    group_lanes);
        if (ends) {
            add_span(group_lanes, outputs, panel.group_vecs(g), index < kSpanChunks,
                     sums + g * kSums);
        }
    }
}

// Up to kBlocks blocks of outputs for all rows of the panel.
template <class W>
inline void panel_outputs(const LinearArgs& a, const Panel& panel, int64_t begin, int64_t end) {
    const int64_t groups = panel.groups(), blocks = (end - begin + kOutputs - 1) / kOutputs;
    const int64_t floats = blocks * groups * (kLanes + 1) * kSums + kOutputs * kChunk;
    float* wide = static_cast<float*>(scratch(Scratch::range, floats * sizeof(float)));
    float* sums = wide + kOutputs * kChunk;
    float* lanes = sums + blocks * groups * kSums;
    auto outputs = [&](int64_t b) { return smaller(kOutputs, end - begin - b * kOutputs); };
    for (int64_t c = 0; c < chunks_of<W>(a); ++c) {
        for (int64_t b = 0; b < blocks; ++b) {
            add_block<W>(a, panel, c, begin + b * kOutputs, outputs(b), end - begin, wide,
                         lanes + b * groups * kLanes * kSums, sums + b * groups * kSums);
        }
    }
    for (int64_t b = 0; b < blocks; ++b) {
        float bias[kOutputs + kLanes];
        load_optional_row(bias, a.bias, begin + b * kOutputs, outputs(b), 0.0f);
        for (int64_t g = 0; g < groups; ++g) {
            store_group(a, panel, g, begin + b * kOutputs, outputs(b), bias,
                        sums + (b * groups + g) * kSums);
        }
    }
}

template <class W>
inline void linear_arranged(const LinearArgs& a, const Arranged& x) {
    parallel(x.panels() * x.chunks, 2, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            arrange_panel<W>(a, x.panel(i / x.chunks), i % x.chunks);
        }
    });
    const int64_t blocks = (a.outputs + kOutputs - 1) / kOutputs;
    const int64_t work = kOutputs * a.inputs * x.rows;
    parallel(blocks, 1 + (1 << 17) / work, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; block += kBlocks) {
            const int64_t output = block * kOutputs;
            const int64_t stop = smaller(smaller(block + kBlocks, end) * kOutputs, a.outputs);
            for (int64_t p = 0; p < x.panels(); ++p) {
                panel_outputs<W>(a, x.panel(p), output, stop);
            }
        }
    });
}

template <class W>
inline void linear_outer(const LinearArgs& a) {
    const int64_t parts = (a.rows + kArrangedRows - 1) / kArrangedRows;
    for (int64_t p = 0; p < parts; ++p) {
        const int64_t first = a.rows * p / parts, rows = a.rows * (p + 1) / parts - first;
        Arranged x{nullptr, first, rows, chunks_of<W>(a)};
        const int64_t floats = x.chunks * kChunk * x.vecs() * kLanes;
        x.x = static_cast<float*>(scratch(Scratch::call, floats * sizeof(float)));
        linear_arranged<W>(a, x);
    }
}

}  // namespace sidewinder::SW_LEVEL
