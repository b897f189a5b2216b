// Causal depthwise convolution with bias and SiLU, from and into state slots.
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kConvChannels = 128;  // of one tile
constexpr int64_t kConvTokens = 16;
constexpr int64_t kMaxTaps = 16;

// One block of channels: its taps, bias and a window of inputs, oldest first.
struct ConvTile {
    float taps[kMaxTaps][kConvChannels];
    float bias[kConvChannels];
    float window[kMaxTaps - 1 + kConvTokens][kConvChannels];
    float y[kConvChannels];
};

template <int K>  // 0: any number of taps
inline void convolve_row(ConvTile& tile, int64_t t, int64_t n, int64_t taps, bool activation) {
    if (K != 0) taps = K;
    for (int64_t c = 0; c < n; c += kLanes) {
        Vec total = load(tile.bias + c);
        for (int64_t k = 0; k < taps; ++k) {
            total = fma(load(tile.taps[k] + c), load(tile.window[t + k] + c), total);
        }
        store(tile.y + c, activation ? silu(total) : total);
    }
}

inline void convolve_row(ConvTile& tile, int64_t t, int64_t n, const ConvArgs& a) {
    if (a.taps == 4) return convolve_row<4>(tile, t, n, 4, a.activation);
    convolve_row<0>(tile, t, n, a.taps, a.activation);
}

inline void load_history(ConvTile& tile, const ConvArgs& a, int64_t s, int64_t c, int64_t n) {
    for (int64_t k = 0; k < a.taps - 1; ++k) {
        if (a.seqs.fresh[s]) {
            zero(tile.window[k], round_up(n, kLanes));
        } else {
            load_row(tile.window[k], at(a.state, a.seqs.sources[s], k, c), a.state.dtype, n);
        }
    }
}

inline void convolve_sequence(ConvTile& tile, const ConvArgs& a, int64_t s, int64_t c, int64_t n) {
    const int64_t end = a.seqs.bounds[s + 1];
    load_history(tile, a, s, c, n);
    for (int64_t t = a.seqs.bounds[s]; t < end; t += kConvTokens) {
        const int64_t tokens = smaller(kConvTokens, end - t);
        for (int64_t i = 0; i < tokens; ++i) {
            load_row(tile.window[a.taps - 1 + i], at(a.x, t + i, c), a.x.dtype, n);
            convolve_row(tile, i, n, a);
            store_row(at(a.y, t + i, c), a.y.dtype, tile.y, n);
        }
        for (int64_t k = 0; k < a.taps - 1; ++k) {  // forwards: sources lie behind targets
            copy(tile.window[k], tile.window[tokens + k], round_up(n, kLanes));
        }
    }
    for (int64_t k = 0; k < a.taps - 1; ++k) {
        store_row(at(a.state, a.seqs.slots[s], k, c), a.state.dtype, tile.window[k], n);
    }
}

inline void causal_conv1d(const ConvArgs& a) {
    const int64_t blocks = (a.channels + kConvChannels - 1) / kConvChannels;
    const int64_t work = a.seqs.bounds[a.seqs.count] * kConvChannels;
    parallel(blocks, 1 + (1 << 12) / (work + 1), [&](int64_t begin, int64_t end) {
        ConvTile& tile = *static_cast<ConvTile*>(scratch(Scratch::range, sizeof(ConvTile)));
        for (int64_t block = begin; block < end; ++block) {
            const int64_t c = block * kConvChannels;
            const int64_t n = smaller(kConvChannels, a.channels - c);
            for (int64_t k = 0; k < a.taps; ++k) {
                load_row(tile.taps[k], at(a.weight, k, c), a.weight.dtype, n);
            }
            load_optional_row(tile.bias, a.bias, c, n, 0.0f);
            for (int64_t s = 0; s < a.seqs.count; ++s) convolve_sequence(tile, a, s, c, n);
        }
    });
}

}  // namespace sidewinder::SW_LEVEL
