// Linear map with weights in int8 or int4, one bfloat16 scale per group of inputs.
//
// int4: a row is blocks of 32 inputs, 16 bytes each; byte j has input j of the block in its lower half
// and input 16 + j in its upper one, both plus 8. The last block is padded with anything.
//
// A few rows: x is rounded to 16 bits with one scale per row and group of inputs (an error of 2^-16
// of the group's largest value, far below the weights' own), and products are summed exactly in
// 32-bit integers over a group. Twice the rate of widening to float32, so that memory stays the
// limit. More rows: the weights are widened to float32 once for all of them.
#pragma once

#include "linear_tile.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kFewRows = 2 * kTileX;
constexpr int64_t kNibbleBlock = 32;
constexpr int64_t kScales = 16;  // of a row that are widened at once

// n weights of a row of int4, rounded up to whole blocks, as int8.
inline void unpack_nibbles(int8_t* dst, const void* src, int64_t n) {
    typedef uint8_t Half __attribute__((vector_size(16)));
    typedef uint8_t Block __attribute__((vector_size(kNibbleBlock)));
    for (int64_t i = 0; i < n; i += kNibbleBlock) {
        Half raw;
        std::memcpy(&raw, static_cast<const char*>(src) + i / 2, sizeof raw);
        const Half low = raw & 15, high = raw >> 4;
        const Block block = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
                                                    12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
                                                    24, 25, 26, 27, 28, 29, 30, 31) - 8;
        std::memcpy(dst + i, &block, sizeof block);
    }
}

// Weights of one step of products: 2 kLanes in int8, a block in int4.
template <int Bits>
struct Step {
    static constexpr int64_t kInputs = 2 * kLanes;
    ShortVec parts[1];
    explicit Step(const int8_t* w) : parts{load_shorts(w)} {}
};

template <>
struct Step<4> {
    static constexpr int64_t kInputs = kNibbleBlock;
    ShortVec parts[kNibbleBlock / (2 * kLanes)];

    explicit Step(const int8_t* w) {
        typedef uint8_t Bytes __attribute__((vector_size(16)));
        typedef int16_t Shorts __attribute__((vector_size(32)));
        Bytes raw;
        std::memcpy(&raw, w, sizeof raw);
        const Shorts pairs = __builtin_convertvector(raw, Shorts);
        const Shorts low = (pairs & 15) - 8, high = (pairs >> 4) - 8;
#if defined(SW_AVX512)
        parts[0] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                                           15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
                                           29, 30, 31);
#else
        std::memcpy(parts, &low, sizeof low);
        std::memcpy(reinterpret_cast<char*>(parts) + sizeof low, &high, sizeof high);
#endif
    }
};

inline float scale_of(const LinearArgs& a, int64_t output, int64_t group) {
    uint16_t bits;
    std::memcpy(&bits, at(a.scales, output, group), sizeof bits);
    return __builtin_bit_cast(float, uint32_t{bits} << 16);
}

template <int Bits>
struct IntegerWeights {
    using Element = int8_t;
    using X = float;
    using Wide = F32Weights;
    static constexpr int kParts = 1;
    static constexpr int64_t kPerElement = 8 / Bits;
    static constexpr int64_t kStep = kLanes;
    static void arrange(float* dst, const void* src, DType dtype, int64_t n) {
        load_row(dst, src, dtype, n);
    }
    // k is a multiple of the group size.
    static void widen(float* dst, const LinearArgs& a, int64_t output, int64_t k, int64_t n) {
        for (int64_t done = 0; done < n; done += a.group_size) {
            const int64_t count = smaller(a.group_size, n - done);
            const float factor = scale_of(a, output, (k + done) / a.group_size);
            const void* from = at(a.weight, output, (k + done) / kPerElement);
            int8_t bytes[kMaxGroup];
            if constexpr (Bits == 4) {
                unpack_nibbles(bytes, from, count);
                from = bytes;
            }
            load_row(dst + done, from, DType::i8, count);
            for (int64_t i = done; i < done + count; i += kLanes) {
                store(dst + i, load(dst + i) * splat(factor));
            }
        }
    }
};

// Rows of x in 16 bits: value = data * scales[group]; padded with zeros to whole groups.
struct ShortRows {
    int16_t* data;
    float* scales;
    int64_t stride, groups;
};

// NaN if the row holds a NaN or an infinity.
inline float largest_magnitude(const float* row, int64_t n) {
    const Vec zero = splat(0.0f);
    Vec largest = zero, poison = zero;
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = load(row + i);
        largest = max(largest, max(v, zero - v));
        poison = fma(v, zero, poison);
    }
    float result = 0.0f;
    for (int i = 0; i < kLanes; ++i) result = largest[i] > result ? largest[i] : result;
    return result + sum(poison);
}

inline ShortRows round_rows(const LinearArgs& a) {
    const int64_t groups = (a.inputs + a.group_size - 1) / a.group_size;
    const int64_t stride = groups * a.group_size;
    const int64_t bytes = a.rows * stride * 2 + a.rows * groups * 4 + stride * 4;
    float* wide = static_cast<float*>(scratch(Scratch::call, bytes));
    float* scales = wide + stride;
    ShortRows rows{reinterpret_cast<int16_t*>(scales + a.rows * groups), scales, stride, groups};
    for (int64_t m = 0; m < a.rows; ++m) {
        zero(wide, stride);
        load_row(wide, at(a.x, m), a.x.dtype, a.inputs);
        for (int64_t g = 0; g < groups; ++g) {
            const float* from = wide + g * a.group_size;
            const float scale = largest_magnitude(from, a.group_size) / 32767.0f;
            const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
            rows.scales[m * groups + g] = scale;
            for (int64_t i = 0; i < a.group_size; ++i) {
                const float value = __builtin_rintf(from[i] * inverse);
                rows.data[m * stride + g * a.group_size + i] =
                    value == value ? static_cast<int16_t>(value) : 0;  // the scale carries a NaN
            }
        }
    }
    return rows;
}

// out[r * kTileX + m] = dot products of M rows, from `row` on, with R weights from `output` on.
template <int Bits, int M, int R>
inline void short_tile(const LinearArgs& a, const ShortRows& x, int64_t row, int64_t output,
                       float* out) {
    constexpr int64_t kStep = Step<Bits>::kInputs, kPerByte = 8 / Bits;
    constexpr int kParts = kStep / (2 * kLanes);
    Vec sums[R][M];
    set_zero(sums);
    const auto* weights = static_cast<const int8_t*>(at(a.weight, output));
    float scales[R][kScales];
    for (int64_t g = 0; g < x.groups; ++g) {
        if (g % kScales == 0) {
            const int64_t n = smaller(kScales, x.groups - g);
            for (int r = 0; r < R; ++r) load_row(scales[r], at(a.scales, output + r, g), DType::bf16, n);
        }
        const int64_t begin = g * a.group_size;
        const int64_t count = smaller(a.group_size, a.inputs - begin);
        const int8_t* w = weights + begin / kPerByte;
        int64_t w_stride = a.weight.stride;
        int8_t tail[R * kMaxGroup];
        if (Bits == 8 && count % kStep != 0) {  // nothing behind the row is read
            std::memset(tail, 0, sizeof tail);
            for (int r = 0; r < R; ++r) std::memcpy(tail + r * kMaxGroup, w + r * w_stride, count);
            w = tail;
            w_stride = kMaxGroup;
        }
        // The next tile's weights, in time: rows are too short for the processor to foresee them.
        const int64_t ahead = begin / kPerByte % 64;  // of a line that an earlier group asked for
        for (int64_t byte = (64 - ahead) % 64; byte < count / kPerByte; byte += 64) {
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                __builtin_prefetch(weights + (R + r) * a.weight.stride + begin / kPerByte + byte);
            }
        }
        IntVec totals[R][M] = {};
        for (int64_t k = 0; k < count; k += kStep) {
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Step<Bits> step(w + r * w_stride + k / kPerByte);
#pragma GCC unroll 4
                for (int part = 0; part < kParts; ++part) {
                    const int16_t* others = x.data + row * x.stride + begin + k + part * 2 * kLanes;
#pragma GCC unroll 4
                    for (int m = 0; m < M; ++m) {
                        const auto other = (ShortVec)load_raw(others + m * x.stride);
                        totals[r][m] += multiply_pairs(step.parts[part], other);
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const float x_scale = x.scales[(row + m) * x.groups + g];
                const Vec scale = splat(scales[r][g % kScales] * x_scale);
                sums[r][m] = fma(__builtin_convertvector(totals[r][m], Vec), scale, sums[r][m]);
            }
        }
    }
    store_sums(sums, true, out);
}

template <int Bits, int M, int R>
inline void short_outputs(const LinearArgs& a, const ShortRows& x, int64_t row, int64_t output) {
    float out[R * kTileX];
    short_tile<Bits, M, R>(a, x, row, output, out);
    for (int64_t r = 0; r < R; ++r) {
        float bias[kLanes], y[kLanes];
        load_optional_row(bias, a.bias, output + r, 1, 0.0f);
        for (int m = 0; m < M; ++m) {
            y[0] = out[r * kTileX + m] + bias[0];
            store_row(at(a.y, row + m, output + r), a.y.dtype, y, 1);
        }
    }
}

template <int Bits, int R>
inline void short_outputs(const LinearArgs& a, const ShortRows& x, int64_t output) {
    for (int64_t row = 0; row < a.rows; row += kTileX) {
        switch (smaller(kTileX, a.rows - row)) {
            case 1: short_outputs<Bits, 1, R>(a, x, row, output); break;
            case 2: short_outputs<Bits, 2, R>(a, x, row, output); break;
            case 3: short_outputs<Bits, 3, R>(a, x, row, output); break;
            default: short_outputs<Bits, 4, R>(a, x, row, output);
        }
    }
}

template <int Bits>
inline void linear_few_rows(const LinearArgs& a) {
    const ShortRows x = round_rows(a);
    parallel(a.outputs, 1 + (1 << 18) / a.inputs, [&](int64_t begin, int64_t end) {
        int64_t o = begin;
        if (a.rows == 1) {
            for (; o + 4 <= end; o += 4) short_outputs<Bits, 4>(a, x, o);
        }
        for (; o + 2 <= end; o += 2) short_outputs<Bits, 2>(a, x, o);
        for (; o < end; ++o) short_outputs<Bits, 1>(a, x, o);
    });
}

}  // namespace sidewinder::SW_LEVEL
