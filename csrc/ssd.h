// Mamba-2's scan, from and into state slots: the recurrence, vectorised along head_dim.
//
// A block of a head's channels keeps its state [d_state, block] in the first-level cache while the
// tokens of a sequence pass by.
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kSsdTokens = 16;
constexpr int64_t kSsdChannels = 4 * kLanes;  // of a block in prefill

struct SsdTile {
    float delta[kSsdTokens], decay[kSsdTokens];
    float* x;  // [head_dim]
    float* drive;
    float* y;
    float* h;  // [d_state, kSsdChannels]
};

// B and C of all tokens in float32: [tokens, groups, d_state] each.
struct Projections {
    const float* B;
    const float* C;
    int64_t stride;  // from token to token
};

// One token for kVecs vectors of channels: h = decay h + B drive, y = sum C h.
template <int kVecs>
inline void ssd_token(float decay, const float* drive, const float* B, const float* C,
                      int64_t d_state, float* h, int64_t stride, float* y) {
    Vec total[kVecs];
    for (int v = 0; v < kVecs; ++v) total[v] = splat(0.0f);
    const Vec keep = splat(decay);
    for (int64_t n = 0; n < d_state; ++n) {
        const Vec in = splat(B[n]), out = splat(C[n]);
        for (int v = 0; v < kVecs; ++v) {
            float* place = h + n * stride + v * kLanes;
            const Vec next = fma(in, load(drive + v * kLanes), keep * load(place));
            store(place, next);
            total[v] = fma(out, next, total[v]);
        }
    }
    for (int v = 0; v < kVecs; ++v) store(y + v * kLanes, total[v]);
}

// All n channels (whole vectors) of one token, in blocks as wide as registers allow.
inline void ssd_token(float decay, const float* drive, const float* B, const float* C,
                      int64_t d_state, float* h, int64_t stride, float* y, int64_t n) {
    int64_t p = 0;
    for (; p + 8 * kLanes <= n; p += 8 * kLanes) {
        ssd_token<8>(decay, drive + p, B, C, d_state, h + p, stride, y + p);
    }
    for (; p + 4 * kLanes <= n; p += 4 * kLanes) {
        ssd_token<4>(decay, drive + p, B, C, d_state, h + p, stride, y + p);
    }
    for (; p < n; p += kLanes) {
        ssd_token<1>(decay, drive + p, B, C, d_state, h + p, stride, y + p);
    }
}

// Step sizes and decays of one head for a few tokens, vectorised along the tokens.
inline void load_steps(SsdTile& tile, const SsdArgs& a, int64_t head, int64_t t, int64_t tokens) {
    float rate, bias;
    std::memcpy(&rate, at(a.A, 0, head), sizeof rate);
    std::memcpy(&bias, at(a.dt_bias, 0, head), sizeof bias);
    float padded[kLanes];
    for (int64_t i = 0; i < tokens; ++i) {
        load_row(padded, at(a.dt, t + i, head), a.dt.dtype, 1);
        tile.delta[i] = padded[0] + bias;
    }
    for (int64_t i = 0; i < kSsdTokens; i += kLanes) {
        const Vec step = max(splat(a.dt_min), softplus(load(tile.delta + i)));
        const Vec delta = min(splat(a.dt_max), step);
        store(tile.delta + i, delta);
        store(tile.decay + i, exp(delta * splat(rate)));
    }
}

// Tokens t to t + tokens of channels p to p + n of a head; the state at h has rows `stride` apart.
inline void ssd_tokens(SsdTile& tile, const SsdArgs& a, const Projections& projections,
                       int64_t head, int64_t t, int64_t tokens, int64_t p, int64_t n, float* h,
                       int64_t stride) {
    const int64_t group = a.head_group[head] * a.d_state, padded = round_up(n, kLanes);
    float skip;
    std::memcpy(&skip, at(a.D, 0, head), sizeof skip);
    load_steps(tile, a, head, t, tokens);
    for (int64_t i = 0; i < tokens; ++i) {
        const int64_t column = head * a.head_dim + p, row = (t + i) * projections.stride + group;
        load_row(tile.x, at(a.x, t + i, column), a.x.dtype, n);
        for (int64_t j = 0; j < padded; j += kLanes) {
            store(tile.drive + j, splat(tile.delta[i]) * load(tile.x + j));
        }
        ssd_token(tile.decay[i], tile.drive, projections.B + row, projections.C + row, a.d_state, h,
                  stride, tile.y, padded);
        for (int64_t j = 0; j < padded; j += kLanes) {
            store(tile.y + j, fma(splat(skip), load(tile.x + j), load(tile.y + j)));
        }
        store_row(at(a.y, t + i, column), a.y.dtype, tile.y, n);
    }
}

inline void ssd_block(SsdTile& tile, const SsdArgs& a, const Projections& projections, int64_t head,
                      int64_t s, int64_t p, int64_t n) {
    const int64_t end = a.seqs.bounds[s + 1];
    auto row = [&](int64_t slot, int64_t r) {
        return at(a.state, slot, r, head * a.head_stride + p);
    };
    for (int64_t r = 0; r < a.d_state; ++r) {
        float* h = tile.h + r * kSsdChannels;
        if (a.seqs.fresh[s]) zero(h, kSsdChannels);
        else load_row(h, row(a.seqs.sources[s], r), a.state.dtype, n);
    }
    for (int64_t t = a.seqs.bounds[s]; t < end; t += kSsdTokens) {
        ssd_tokens(tile, a, projections, head, t, smaller(kSsdTokens, end - t), p, n, tile.h,
                   kSsdChannels);
    }
    for (int64_t r = 0; r < a.d_state; ++r) {
        store_row(row(a.seqs.slots[s], r), a.state.dtype, tile.h + r * kSsdChannels, n);
    }
}

inline void ssd_sequence(SsdTile& tile, const SsdArgs& a, const Projections& projections,
                         int64_t head, int64_t s) {
    const int64_t begin = a.seqs.bounds[s], tokens = a.seqs.bounds[s + 1] - begin;
    const bool whole = a.head_dim % kLanes == 0 && a.state.dtype == DType::f32;
    const bool in_place = whole && a.seqs.sources[s] == a.seqs.slots[s] && !a.seqs.fresh[s];
    if (tokens == 1 && in_place) {  // decode: no copy of the state
        float* h = static_cast<float*>(at(a.state, a.seqs.slots[s], 0, head * a.head_stride));
        return ssd_tokens(tile, a, projections, head, begin, 1, 0, a.head_dim, h,
                          a.state.row_stride);
    }
    for (int64_t p = 0; p < a.head_dim; p += kSsdChannels) {
        ssd_block(tile, a, projections, head, s, p, smaller(kSsdChannels, a.head_dim - p));
    }
}

inline SsdTile ssd_scratch(const SsdArgs& a) {
    const int64_t width = larger(round_up(a.head_dim, kLanes), kSsdChannels);
    const int64_t floats = 3 * width + a.d_state * kSsdChannels;
    float* memory = static_cast<float*>(scratch(Scratch::range, floats * sizeof(float)));
    return SsdTile{{}, {}, memory, memory + width, memory + 2 * width, memory + 3 * width};
}

// Every head of a group reads the same projections, so they are widened once.
inline Projections widen_projections(const SsdArgs& a) {
    const int64_t tokens = a.seqs.bounds[a.seqs.count], width = a.groups * a.d_state;
    const int64_t floats = tokens * width + kLanes;
    float* B = static_cast<float*>(scratch(Scratch::call, 2 * floats * sizeof(float)));
    float* C = B + floats;
    for (int64_t t = 0; t < tokens; ++t) {
        load_row(B + t * width, at(a.B, t), a.B.dtype, width);
        load_row(C + t * width, at(a.C, t), a.C.dtype, width);
    }
    return {B, C, width};
}

inline void ssd_scan(const SsdArgs& a) {
    const Projections projections = widen_projections(a);
    const int64_t work = a.seqs.bounds[a.seqs.count] * a.head_dim * a.d_state;
    parallel(a.heads, 1 + (1 << 16) / (work + 1), [&](int64_t begin, int64_t end) {
        SsdTile tile = ssd_scratch(a);
        for (int64_t head = begin; head < end; ++head) {
            for (int64_t s = 0; s < a.seqs.count; ++s) {
                ssd_sequence(tile, a, projections, head, s);
            }
        }
    });
}

}  // namespace sidewinder::SW_LEVEL
