// What the codec kernels take; included by kernels.h's table. `bits` is 16, 8, 6 or 4.
//
// A stripe's message holds the payload of its groups, then their scales (src/sidewinder/ops/codec).
#pragma once

#include <cstdint>

namespace sidewinder {

struct Rows;
struct NormArgs;

struct CodecShape {
    int64_t rows, width;
    int64_t stripes, stripe_groups;
    int bits;
};

// out: [stripes, bytes of a stripe].
struct EncodeArgs {
    const Rows* x;
    uint8_t* out;
    CodecShape shape;
};

// parts: [ranks, bytes], each `groups` long; out: [bytes].
struct ReduceArgs {
    const uint8_t* parts;
    uint8_t* out;
    int64_t ranks, groups;
    int bits;
};

// parts: [ranks, stripes, bytes of a stripe].
struct DecodeArgs {
    const uint8_t* parts;
    const Rows* out;
    int64_t ranks;
    CodecShape shape;
};

// As DecodeArgs, but a decoded row, rounded to bfloat16 or float32, is `norm`'s x, whose own is unused.
struct DecodeNormArgs {
    const uint8_t* parts;
    int64_t ranks;
    CodecShape shape;
    bool is_bf16;
    const NormArgs* norm;
};

constexpr int64_t codec_group(int bits) { return bits == 8 ? 128 : 32; }
// Groups of a row; the last one may be short.
constexpr int64_t codec_row_groups(int bits, int64_t width) {
    return (width + codec_group(bits) - 1) / codec_group(bits);
}
constexpr int64_t codec_payload(int bits) { return codec_group(bits) * bits / 8; }
constexpr int64_t codec_bytes(int bits) { return codec_payload(bits) + (bits == 16 ? 0 : 2); }

}  // namespace sidewinder
