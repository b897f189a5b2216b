// What the kernels take and the table of one level's kernels. Independent of the level.
//
// Sizes and strides count elements and are 64-bit. The last dimension of every array is contiguous.
#pragma once

#include <cstdint>

#include "codec_args.h"

namespace sidewinder {

struct bf16 {
    uint16_t bits;
};

enum class DType : int { f32 = 0, bf16 = 1, i8 = 2 };  // i8: also pairs of int4

// An array of rows: element (r, c) is at data + r * stride + c. Null data means absent.
struct Rows {
    void* data;
    int64_t stride;
    DType dtype;
};

// State of all slots: slot s begins at data + s * slot_stride, its row r at r * row_stride.
struct State {
    void* data;
    int64_t slot_stride;
    int64_t row_stride;
    DType dtype;
};

// A packed batch's sequences: s holds rows bounds[s] to bounds[s + 1], goes on from the state at
// sources[s] and leaves its own at slots[s]. A source may be an earlier sequence's slot: whoever
// writes a part of it runs the sequences in order.
struct Sequences {
    const int32_t* bounds;
    const int64_t* slots;
    const int64_t* sources;
    const bool* fresh;
    int64_t count;
};

struct ConvArgs {
    Rows x, weight, bias, y;
    State state;
    Sequences seqs;
    int64_t channels, taps;
    bool activation;
};

struct ScanArgs {
    Rows x, dt, A, B, C, D, z, dt_bias, y;
    State state;
    Sequences seqs;
    int64_t channels, d_state;
};

// x and y rows hold [heads, head_dim], B and C rows [groups, d_state]; state rows are (head, n).
struct SsdArgs {
    Rows x, dt, A, B, C, D, dt_bias, y;
    State state;
    int64_t head_stride;  // of the state
    Sequences seqs;
    const int64_t* head_group;
    int64_t heads, head_dim, d_state, groups;
    float dt_min, dt_max;
};

// With `beside` [rows, beside_width], y is the norm of rows that go on with those of it.
struct NormArgs {
    Rows x, weight, residual, y, sum;
    int64_t rows, width;
    float eps;
    Rows beside{nullptr, 0, DType::f32};
    int64_t beside_width = 0;
};

struct GatedNormArgs {
    Rows x, z, weight, y;
    int64_t rows, width, group_size;
    float eps;
    bool norm_before_gate;
};

// u = x silu(z) weight; `squares` [rows, 1]: of x silu(z), or of x alone.
struct GatedSquaresArgs {
    Rows x, z, weight, u, squares;
    int64_t rows, width;
    bool norm_before_gate;
};

// `message` [rows, width + columns]: partial, then zeros but for squares / divisor from column `own`
// on: in float32 as it is, in 16 bits as a rounded part and a remainder. `squares` is [rows, 1].
struct WithScalarArgs {
    Rows partial, squares, message;
    int64_t rows, width, columns, own;
    float divisor;
};

// y = x / sqrt(sum of the row's `mean_squares` [rows, parts], from left to right, + eps).
struct ScaledRowsArgs {
    Rows x, mean_squares, y;
    int64_t rows, width, parts;
    float eps;
};

struct AddRowsArgs {
    Rows x, y, total;
    int64_t rows, width;
};

// In the order of src/sidewinder/activations.py.
enum class Activation : int { gelu, gelu_tanh, relu, silu };
constexpr int kActivations = 4;

struct GatedActivationArgs {
    Rows gate, up, y;
    int64_t rows, width;
    Activation activation;
};

// q rows hold [heads, width], k rows [kv_heads, width]; 2 pairs <= width channels of each head turn.
struct RotaryArgs {
    Rows q, k;
    const int64_t* positions;
    const float* frequencies;
    int64_t rows, heads, kv_heads, width, pairs;
};

// q and y rows hold [heads, width], those of k and v [kv_heads, width]; k and v have the same dtype.
// Sequence s has lengths[s] >= 1 tokens, at the rows read[s * read_stride + t] of k and v.
struct AttentionArgs {
    Rows q, k, v, y;
    const int64_t* read;
    int64_t read_stride;
    const int64_t* lengths;
    int64_t sequences, heads, kv_heads, width;
    float scale;
};

// Largest group of inputs that share a scale; sizes divide it.
constexpr int64_t kMaxGroup = 128;

// `scales` is for weights in int8 and int4 only: [outputs, ceil(inputs / group_size)], bfloat16.
struct LinearArgs {
    Rows x, weight, scales, bias, y;
    int64_t rows, inputs, outputs, group_size;
    int64_t bits;  // of an integer weight: 8 or 4
};

// `integers` int8 [rows, groups * group_size] and `scales` bfloat16 [rows, groups] of groups of x.
struct RoundArgs {
    Rows x, integers, scales;
    int64_t rows, inputs, group_size;
};

// `chosen` int32 and `shares` [rows, n_chosen]; `weight` is float32, `bias` null or [experts]. Groups
// divide the experts, and those chosen have n_chosen experts at least.
struct RouteArgs {
    Rows x, weight;
    const float* bias;
    int32_t* chosen;
    float* shares;
    int64_t rows, width, experts, n_chosen, groups, groups_chosen;
    bool softmax, normalised;
    float scale, least_sum;
};

// Matrices of every expert, which `multiply` takes once it has x, y and rows. `gate` may be null: each
// channel of `up` is its own.
struct ExpertArgs {
    Rows x, y;
    const int32_t* chosen;  // [rows, n_chosen]
    const float* shares;
    const LinearArgs *gate, *up, *down;
    void (*multiply)(const LinearArgs&);
    int64_t rows, width, inner, experts, n_chosen;
    Activation activation;
};

// Outputs of a panel of packed weights (linear_packed.h).
constexpr int64_t kPanel = 64;

constexpr int kMostRanks = 64;

// `type`: 0 float32, 1 bfloat16, 2 float16, 3 float64. `out` may be one of the parts.
struct RankSumArgs {
    const void* const* parts;
    int ranks;
    void* out;
    int64_t count;
    int type;
};

struct Kernels {
    const char* isa;
    void (*causal_conv1d)(const ConvArgs&);
    void (*selective_scan)(const ScanArgs&);
    void (*ssd_scan)(const SsdArgs&);
    void (*rms_norm)(const NormArgs&);
    void (*gated_rms_norm)(const GatedNormArgs&);
    void (*gated_squares)(const GatedSquaresArgs&);
    void (*with_scalar)(const WithScalarArgs&);
    void (*scaled_rows)(const ScaledRowsArgs&);
    void (*add_rows)(const AddRowsArgs&);
    void (*gated_activation)(const GatedActivationArgs&);
    void (*rotary)(const RotaryArgs&);
    void (*paged_attention)(const AttentionArgs&);
    void (*linear)(const LinearArgs&);
    // Weights in panels: `weight` and `scales` have one row per panel. Null where a level has none.
    // packed_bits is the sum of those of 16, 8 and 4 whose weights it takes.
    void (*linear_packed)(const LinearArgs&);
    int packed_bits;
    void (*round_int4)(const RoundArgs&);
    void (*route)(const RouteArgs&);
    void (*experts)(const ExpertArgs&);
    void (*rank_sum)(const RankSumArgs&);
    void (*codec_encode)(const EncodeArgs&);
    void (*codec_reduce)(const ReduceArgs&);
    void (*codec_decode)(const DecodeArgs&);
    void (*codec_decode_norm)(const DecodeNormArgs&);
};

// The table in use. Chosen once, at import, from the processor and SIDEWINDER_ISA.
const Kernels& kernels();
// Choose another level by name; throws std::invalid_argument if this machine cannot run it.
void set_isa(const char* name);

}  // namespace sidewinder
