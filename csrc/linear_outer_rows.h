// The rows of x as outer products read them: by chunk of inputs, group of rows, lane and step.
#pragma once

#include "linear_outer_tile.h"
#include "rows.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kPanelVecs = 4 * kMostVecs;  // of a panel: its sums stay in the second-level cache

// Some rows of x, arranged by chunk, group of rows, lane and step.
struct Panel {
    float* x;
    int64_t first_row, rows;

    int64_t vecs() const { return (rows + kLanes - 1) / kLanes; }
    int64_t groups() const { return (vecs() + kMostVecs - 1) / kMostVecs; }
    // Groups differ by one vector at most.
    int64_t first_vec(int64_t group) const { return vecs() * group / groups(); }
    int64_t group_vecs(int64_t group) const { return first_vec(group + 1) - first_vec(group); }
    // Of a chunk with so many steps; only the last chunk may be shorter.
    float* group_x(int64_t chunk, int64_t group, int64_t steps) const {
        return x + (chunk * kChunk * vecs() + first_vec(group) * steps * kLanes) * kLanes;
    }
};

// All rows that are arranged at once, divided into panels.
struct Arranged {
    float* x;
    int64_t first_row, rows, chunks;

    int64_t vecs() const { return (rows + kLanes - 1) / kLanes; }
    int64_t panels() const { return (vecs() + kPanelVecs - 1) / kPanelVecs; }
    Panel panel(int64_t index) const {
        const int64_t first = vecs() * index / panels() * kLanes;
        const int64_t end = smaller(vecs() * (index + 1) / panels() * kLanes, rows);
        return {x + first * chunks * kChunk, first_row + first, end - first};
    }
};

// A chunk of the inputs: n of them from k on, which are so many steps of every lane.
struct Chunk {
    int64_t k, n, steps;
};

template <class W>
inline Chunk chunk_at(const LinearArgs& a, int64_t chunk) {
    const int64_t k = chunk * kChunk, n = smaller(kChunk, a.inputs - k);
    return {k, n, round_up(n, W::kStep) / kLanes};
}

template <class W>
inline int64_t chunks_of(const LinearArgs& a) {
    return (a.inputs + kChunk - 1) / kChunk;
}

// kLanes rows of x, from row `first` of the panel on, each input to its lane and step.
template <class W>
inline void arrange_rows(const LinearArgs& a, const Panel& panel, const Chunk& chunk, int64_t first,
                         int64_t width, float* x) {
    alignas(64) float rows[kLanes][kChunk];
    for (int64_t m = 0; m < kLanes; ++m) {
        if (first + m < panel.rows) {
            W::arrange(reinterpret_cast<typename W::X*>(rows[m]),
                       at(a.x, panel.first_row + first + m, chunk.k), a.x.dtype, chunk.n);
        } else {
            zero(rows[m], chunk.steps * kLanes);
        }
    }
    for (int64_t j = 0; j < chunk.steps; ++j) {
        Vec square[kLanes];
#pragma GCC unroll 16
        for (int m = 0; m < kLanes; ++m) square[m] = load(rows[m] + j * kLanes);
        transpose(square);
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) store(x + (l * chunk.steps + j) * width, square[l]);
    }
}

template <class W>
inline void arrange_panel(const LinearArgs& a, const Panel& panel, int64_t index) {
    const Chunk chunk = chunk_at<W>(a, index);
    for (int64_t g = 0; g < panel.groups(); ++g) {
        const int64_t first = panel.first_vec(g) * kLanes, width = panel.group_vecs(g) * kLanes;
        float* x = panel.group_x(index, g, chunk.steps);
        for (int64_t m = 0; m < width; m += kLanes) {
            arrange_rows<W>(a, panel, chunk, first + m, width, x + m);
        }
    }
}

}  // namespace sidewinder::SW_LEVEL
