// Linear map with packed weights, any number of rows, by the processor's own products of small numbers.
//
// A panel holds 64 outputs: for each unit of inputs, 64 lanes of 32 bits, one lane an output. A unit
// is two bfloat16 weights, four in int8 or eight in int4: linear_packed_bf16.h and
// linear_packed_integer.h for dot products, linear_packed_int8.h and linear_packed_int4.h for levels
// without. Panels stream through in order, once for all rows of a call (kRowsAtOnce at a time).
//
// An output is one chain of additions along the inputs, whatever the number of rows, threads or
// blocks, so a row's result is the same in every batch, to the bit.
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int kVecsOfPanel = kPanel / kLanes;      // vectors of outputs in a panel
constexpr int64_t kUnitBytes = kPanel * 4;       // of a panel's unit
constexpr int64_t kUnitLines = kUnitBytes / 64;
constexpr int64_t kBlockUnits = 64;              // their weights stay in the first-level cache
constexpr int64_t kRowsAtOnce = 512;             // their sums stay in the second-level cache
constexpr int64_t kAheadBytes = 16 * kUnitBytes; // how early a lone tile asks for weights

// One group of inputs of a row that was rounded to 16 bits: value = integer * scale. `bias` is what
// the weights' offset adds to its products.
struct RowGroup {
    float scale;
    int32_t bias;
};

// The work of a tile: some units of a panel, for a few rows.
struct PackedTile {
    const uint32_t* x;    // the first row, from the first of these units on
    int64_t x_stride;     // 32-bit words from row to row
    const char* weights;
    const char* ahead;    // weights that are needed next
    int64_t units;
    float* sums;          // [rows, kPanel], added to
    // Of integer weights only: their scales [groups, kPanel], and what belongs to the rows of x.
    const bf16* scales;
    const RowGroup* row_groups;
    int64_t row_group_stride, group_units;
};

// Asks for some of a unit's four lines.
template <int Lines>
SW_INLINE void ask(const char* unit) {
    if constexpr (Lines > 0) {
#pragma GCC unroll 4
        for (int i = 0; i < Lines; ++i) __builtin_prefetch(unit + i * (kUnitLines / Lines) * 64);
    }
}

// Rows of x as a format wants them, and what of the weights goes with every tile.
struct PackedRows {
    const uint32_t* words;
    int64_t stride;  // words
    const RowGroup* row_groups;
    int64_t groups;
};

// A format says how many rows a tile may have and how many words a row has for a unit of inputs; it
// arranges rows of x, and multiplies a tile.
template <class Format, int Lines, int M = Format::kTileRows>
inline void multiply_rows(int64_t rows, const PackedTile& t) {
    if constexpr (M > 1) {
        if (rows < M) return multiply_rows<Format, Lines, M - 1>(rows, t);
    }
    Format::template multiply<M, Lines>(t);
}

// Tile i of n over the same weights: between them they ask for the next block's, evenly.
template <class Format>
inline void multiply_tile(int64_t i, int64_t n, int64_t rows, PackedTile t) {
    if (n == 1) return multiply_rows<Format, 4>(rows, t);
    const bool takes_two = n == 2 || (n == 3 && i == 0);
    t.ahead += 64 * (n == 3 && i > 0 ? 2 * i - 1 : i);
    if (takes_two) return multiply_rows<Format, 2>(rows, t);
    i < 4 ? multiply_rows<Format, 1>(rows, t) : multiply_rows<Format, 0>(rows, t);
}

template <class Format>
inline int64_t units_of(const LinearArgs& a) {
    return (a.inputs + Format::kUnitInputs - 1) / Format::kUnitInputs;
}

// Adds the products of some rows with one panel, block by block, to sums [rows, kPanel].
template <class Format>
inline void multiply_panel(const LinearArgs& a, const PackedRows& x, int64_t row, int64_t rows,
                           int64_t panel, float* sums) {
    const int64_t units = units_of<Format>(a), group_units = a.group_size / Format::kUnitInputs;
    const int64_t tiles = (rows + Format::kTileRows - 1) / Format::kTileRows;
    const int64_t block = tiles == 1 ? units : kBlockUnits;
    const char* weights = static_cast<const char*>(a.weight.data) + panel * a.weight.stride * 4;
    for (int64_t u = 0; u < units; u += block) {
        const int64_t n = smaller(block, units - u), group = u / group_units;
        const char* begin = weights + u * kUnitBytes;
        const char* ahead = begin + (tiles == 1 ? kAheadBytes : n * kUnitBytes);
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t first = rows * i / tiles, end = rows * (i + 1) / tiles;
            PackedTile tile{x.words + (row + first) * x.stride + u * Format::kUnitWords, x.stride,
                            begin, ahead, n, sums + first * kPanel, nullptr, nullptr, 0, 0};
            if (x.row_groups != nullptr) {
                tile.scales = static_cast<const bf16*>(at(a.scales, panel)) + group * kPanel;
                tile.row_groups = x.row_groups + (row + first) * x.groups + group;
                tile.row_group_stride = x.groups;
                tile.group_units = group_units;
            }
            multiply_tile<Format>(i, tiles, end - first, tile);
        }
    }
}

// Some rows' outputs of one panel.
template <class Format>
inline void panel_outputs(const LinearArgs& a, const PackedRows& x, int64_t row, int64_t rows,
                          int64_t panel) {
    float* sums = static_cast<float*>(scratch(Scratch::range, rows * kPanel * sizeof(float)));
    zero(sums, rows * kPanel);
    multiply_panel<Format>(a, x, row, rows, panel, sums);
    const int64_t output = panel * kPanel, outputs = smaller(kPanel, a.outputs - output);
    float bias[kPanel];
    load_optional_row(bias, a.bias, output, outputs, 0.0f);
    for (int64_t m = 0; m < rows; ++m) {
        float* total = sums + m * kPanel;
        for (int64_t o = 0; o < outputs; o += kLanes) store(total + o, load(total + o) + load(bias + o));
        store_row(at(a.y, row + m, output), a.y.dtype, total, outputs);
    }
}

template <class Format>
inline void linear_packed_as(const LinearArgs& a) {
    if (a.rows == 0) return;
    const PackedRows x = Format::arrange(a);
    const int64_t panels = (a.outputs + kPanel - 1) / kPanel;
    int64_t parts = (a.rows + kRowsAtOnce - 1) / kRowsAtOnce;
    if (panels < threads()) parts = larger(parts, smaller(a.rows / 32, threads()));  // few outputs
    const int64_t work = kPanel * a.inputs * (a.rows / parts + 1);
    parallel(panels * parts, 1 + (1 << 17) / work, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t part = i % parts, row = a.rows * part / parts;
            panel_outputs<Format>(a, x, row, a.rows * (part + 1) / parts - row, i / parts);
        }
    });
}

}  // namespace sidewinder::SW_LEVEL
