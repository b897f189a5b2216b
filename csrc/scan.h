// Mamba-1's selective scan, from and into state slots.
//
// A tile is a block of channels by a few tokens, all float32 in the first-level cache: the block's
// state and decay rates stay there while the tokens of a sequence pass by. A is negative.
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kScanChannels = 64;
constexpr int64_t kScanTokens = 8;

struct ScanTile {
    float D[kScanChannels], dt_bias[kScanChannels];
    float delta[kScanTokens][kScanChannels];  // softplus(dt + dt_bias)
    float drive[kScanTokens][kScanChannels];  // delta * x
    float x[kScanTokens][kScanChannels];
    float z[kScanTokens][kScanChannels];
    float y[kScanTokens][kScanChannels];
    float* A;  // [d_state, kScanChannels], times log2(e)
    float* h;  // [d_state, kScanChannels]
    float* B;  // [kScanTokens, d_state]
    float* C;
};

// Fill the tile's rows with tokens t to t + tokens of channels c to c + n.
inline void load_tokens(ScanTile& tile, const ScanArgs& a, int64_t t, int64_t tokens, int64_t c,
                        int64_t n) {
    for (int64_t i = 0; i < tokens; ++i) {
        load_row(tile.x[i], at(a.x, t + i, c), a.x.dtype, n);
        load_row(tile.delta[i], at(a.dt, t + i, c), a.dt.dtype, n);
        if (a.z.data != nullptr) load_row(tile.z[i], at(a.z, t + i, c), a.z.dtype, n);
        load_row(tile.B + i * a.d_state, at(a.B, t + i), a.B.dtype, a.d_state);
        load_row(tile.C + i * a.d_state, at(a.C, t + i), a.C.dtype, a.d_state);
        for (int64_t j = 0; j < n; j += kLanes) {
            const Vec delta = softplus(load(tile.delta[i] + j) + load(tile.dt_bias + j));
            store(tile.delta[i] + j, delta);
            store(tile.drive[i] + j, delta * load(tile.x[i] + j));
        }
    }
}

// What is needed next, asked for while this is computed: a state, and rates of decay if they are
// another block's. Rows are apart as those in use. Past the end of either nothing happens.
struct ScanAhead {
    const float* h;
    const float* A;
};

enum class Asks { nothing, state, state_and_rates };

// Asks for one line, of the second-level cache: the rows of a state lie so far apart that all fall
// into the same few sets of the first.
SW_INLINE void ask(const float* line) { __builtin_prefetch(line, 0, 2); }

// One vector of channels, all tokens of the tile: h = 2^(delta A) h + drive B, y = sum C h.
// The state is read and written at `h`, whose rows are `stride` apart.
template <Asks asks>
__attribute__((noinline)) void scan_column(ScanTile& tile, int64_t tokens, int64_t j,
                                           const ScanArgs& a, float* h, int64_t stride,
                                           ScanAhead ahead) {
    const float* A = tile.A + j;
    const int64_t d_state = a.d_state, A_stride = a.A.stride;
    for (int64_t i = 0; i < tokens; ++i) {
        const Vec delta = load(tile.delta[i] + j), drive = load(tile.drive[i] + j);
        const float* B = tile.B + i * d_state;
        const float* C = tile.C + i * d_state;
        Vec y = splat(0.0f);
#pragma GCC unroll 2
        for (int64_t n = 0; n < d_state; ++n) {
            if (asks != Asks::nothing) ask(ahead.h + n * stride + j);
            if (asks == Asks::state_and_rates) ask(ahead.A + n * A_stride + j);
            const Vec decay = exp2_negative(delta * load(A + n * kScanChannels));
            const Vec next = fma(decay, load(h + n * stride), drive * splat(B[n]));
            store(h + n * stride, next);
            y = fma(splat(C[n]), next, y);
        }
        store(tile.y[i] + j, y);
    }
}

// y = (y + D x) silu(z), stored as tokens t to t + tokens of channels c to c + n.
inline void store_tokens(ScanTile& tile, const ScanArgs& a, int64_t t, int64_t tokens, int64_t c,
                         int64_t n) {
    for (int64_t i = 0; i < tokens; ++i) {
        for (int64_t j = 0; j < n; j += kLanes) {
            Vec out = fma(load(tile.D + j), load(tile.x[i] + j), load(tile.y[i] + j));
            if (a.z.data != nullptr) out = out * silu(load(tile.z[i] + j));
            store(tile.y[i] + j, out);
        }
        store_row(at(a.y, t + i, c), a.y.dtype, tile.y[i], n);
    }
}

template <Asks asks = Asks::nothing>
inline void scan_tile(ScanTile& tile, const ScanArgs& a, int64_t t, int64_t tokens, int64_t c,
                      int64_t n, float* h, int64_t stride, ScanAhead ahead = {}) {
    load_tokens(tile, a, t, tokens, c, n);
    for (int64_t j = 0; j < n; j += kLanes) {
        scan_column<asks>(tile, tokens, j, a, h + j, stride, ahead);
    }
    store_tokens(tile, a, t, tokens, c, n);
}

// The state that a sequence goes on from.
inline float* state_of(const ScanArgs& a, int64_t s, int64_t c) {
    return static_cast<float*>(at(a.state, a.seqs.sources[s], 0, c));
}

// A single token of a sequence that goes on in its own slot, without a copy of its state.
inline void scan_step(ScanTile& tile, const ScanArgs& a, int64_t s, int64_t c, int64_t n) {
    const int64_t t = a.seqs.bounds[s], stride = a.state.row_stride;
    float* h = state_of(a, s, c);
    if (s + 1 < a.seqs.count) {
        const ScanAhead ahead{state_of(a, s + 1, c), nullptr};
        return scan_tile<Asks::state>(tile, a, t, 1, c, n, h, stride, ahead);
    }
    const int64_t next = c + kScanChannels;
    const ScanAhead ahead{state_of(a, 0, next), static_cast<const float*>(at(a.A, 0, next))};
    scan_tile<Asks::state_and_rates>(tile, a, t, 1, c, n, h, stride, ahead);
}

// Rows of one block of channels of a sequence.
inline void scan_sequence(ScanTile& tile, const ScanArgs& a, int64_t s, int64_t c, int64_t n) {
    const int64_t begin = a.seqs.bounds[s], end = a.seqs.bounds[s + 1];
    const int64_t slot = a.seqs.slots[s], source = a.seqs.sources[s];
    const bool whole = n % kLanes == 0 && a.state.dtype == DType::f32;
    const bool in_place = whole && source == slot && !a.seqs.fresh[s];
    if (end - begin == 1 && in_place) return scan_step(tile, a, s, c, n);
    for (int64_t r = 0; r < a.d_state; ++r) {
        float* row = tile.h + r * kScanChannels;
        if (a.seqs.fresh[s]) zero(row, kScanChannels);
        else load_row(row, at(a.state, source, r, c), a.state.dtype, n);
    }
    for (int64_t t = begin; t < end; t += kScanTokens) {
        scan_tile(tile, a, t, smaller(kScanTokens, end - t), c, n, tile.h, kScanChannels);
    }
    for (int64_t r = 0; r < a.d_state; ++r) {
        store_row(at(a.state, slot, r, c), a.state.dtype, tile.h + r * kScanChannels, n);
    }
}

inline ScanTile& scan_scratch(int64_t d_state) {
    const int64_t block = d_state * kScanChannels, projections = kScanTokens * d_state + kLanes;
    const int64_t floats = 2 * block + 2 * projections;
    void* memory = scratch(Scratch::range, sizeof(ScanTile) + floats * sizeof(float));
    ScanTile& tile = *static_cast<ScanTile*>(memory);
    tile.A = reinterpret_cast<float*>(&tile + 1);
    tile.h = tile.A + block;
    tile.B = tile.h + block;
    tile.C = tile.B + projections;
    return tile;
}

inline void load_channel_constants(ScanTile& tile, const ScanArgs& a, int64_t c, int64_t n) {
    for (int64_t r = 0; r < a.d_state; ++r) {
        float* row = tile.A + r * kScanChannels;
        load_row(row, at(a.A, r, c), a.A.dtype, n);
        for (int64_t j = 0; j < n; j += kLanes) store(row + j, load(row + j) * splat(kLog2E));
    }
    load_row(tile.D, at(a.D, 0, c), a.D.dtype, n);
    load_optional_row(tile.dt_bias, a.dt_bias, c, n, 0.0f);
}

// A block of channels of all sequences, one sequence after another.
inline void scan_block(ScanTile& tile, const ScanArgs& a, int64_t block) {
    const int64_t c = block * kScanChannels, n = smaller(kScanChannels, a.channels - c);
    load_channel_constants(tile, a, c, n);
    for (int64_t s = 0; s < a.seqs.count; ++s) scan_sequence(tile, a, s, c, n);
}

inline void selective_scan(const ScanArgs& a) {
    const int64_t blocks = (a.channels + kScanChannels - 1) / kScanChannels;
    const int64_t work = a.seqs.bounds[a.seqs.count] * kScanChannels * a.d_state;
    parallel(blocks, 1 + (1 << 13) / (work + 1), [&](int64_t begin, int64_t end) {
        ScanTile& tile = scan_scratch(a.d_state);
        for (int64_t block = begin; block < end; ++block) scan_block(tile, a, block);
    });
}

}  // namespace sidewinder::SW_LEVEL
