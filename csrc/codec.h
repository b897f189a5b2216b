// Few-bit messages of activations: encode; decode, sum over ranks and encode again; decode and sum,
// also with the residual added and normalised.
#pragma once

#include "codec_args.h"
#include "codec_group.h"
#include "norm.h"
#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

// Where a group's message bytes are, and which elements of which row it holds.
class GroupCursor {
   public:
    GroupCursor(const CodecShape& shape, int64_t group)
        : shape_(shape),
          group_size_(codec_group(shape.bits)),
          per_row_(codec_row_groups(shape.bits, shape.width)),
          stripe_(group / shape.stripe_groups),
          in_stripe_(group % shape.stripe_groups),
          row_(group / per_row_),
          column_(group % per_row_ * group_size_) {}

    void next() {
        if (++in_stripe_ == shape_.stripe_groups) in_stripe_ = 0, ++stripe_;
        column_ += group_size_;
        if (column_ >= shape_.width) column_ = 0, ++row_;
    }
    int64_t row() const { return row_; }
    int64_t column() const { return column_; }
    int64_t stripe() const { return stripe_; }
    int64_t in_stripe() const { return in_stripe_; }
    // Elements that exist: none after the last row.
    int64_t length() const {
        return row_ < shape_.rows ? smaller(group_size_, shape_.width - column_) : 0;
    }

   private:
    const CodecShape& shape_;
    const int64_t group_size_, per_row_;
    int64_t stripe_, in_stripe_, row_, column_;
};

// The sum over `ranks` messages, `stride` bytes apart, of their group `index` out of `groups`.
template <int bits>
inline void sum_group(float* tile, const uint8_t* parts, int64_t ranks, int64_t stride,
                      int64_t index, int64_t groups) {
    const uint8_t* payload = parts + index * codec_payload(bits);
    const uint8_t* scale = parts + groups * codec_payload(bits) + 2 * index;
    decode_group<bits, false>(tile, payload, scale);
    for (int64_t r = 1; r < ranks; ++r) {
        decode_group<bits, true>(tile, payload + r * stride, scale + r * stride);
    }
}

// Groups that are worth a thread of their own.
constexpr int64_t codec_grain(int bits) { return (1 << 14) / codec_group(bits); }

template <int bits, class T>
inline void encode_of(const EncodeArgs& a) {
    const CodecShape& shape = a.shape;
    const int64_t n = shape.stripe_groups;
    parallel(shape.stripes * n, codec_grain(bits), [&](int64_t begin, int64_t end) {
        GroupCursor at_group(shape, begin);
        for (int64_t i = begin; i < end; ++i, at_group.next()) {
            uint8_t* message = a.out + at_group.stripe() * n * codec_bytes(bits);
            uint8_t* payload = message + at_group.in_stripe() * codec_payload(bits);
            uint8_t* scale = message + n * codec_payload(bits) + 2 * at_group.in_stripe();
            const T* x = static_cast<const T*>(a.x->data) + at_group.row() * a.x->stride +
                         at_group.column();
            const int64_t length = at_group.length();
            if (length == codec_group(bits)) {
                encode_group<bits>(payload, scale, x);
            } else {
                T tail[codec_group(bits)] = {};
                if (length > 0) std::memcpy(tail, x, length * sizeof(T));
                encode_group<bits>(payload, scale, tail);
            }
        }
    });
}

template <int bits>
inline void reduce_of(const ReduceArgs& a) {
    const int64_t stride = a.groups * codec_bytes(bits);
    parallel(a.groups, codec_grain(bits), [&](int64_t begin, int64_t end) {
        float tile[codec_group(bits)];
        for (int64_t i = begin; i < end; ++i) {
            sum_group<bits>(tile, a.parts, a.ranks, stride, i, a.groups);
            encode_group<bits>(a.out + i * codec_payload(bits),
                               a.out + a.groups * codec_payload(bits) + 2 * i, tile);
        }
    });
}

template <int bits, class T>
inline void decode_of(const DecodeArgs& a) {
    const CodecShape& shape = a.shape;
    const int64_t per_row = codec_row_groups(bits, shape.width);
    const int64_t stripe_bytes = shape.stripe_groups * codec_bytes(bits);
    parallel(shape.rows * per_row, codec_grain(bits), [&](int64_t begin, int64_t end) {
        GroupCursor at_group(shape, begin);
        float tile[codec_group(bits)];
        for (int64_t i = begin; i < end; ++i, at_group.next()) {
            sum_group<bits>(tile, a.parts + at_group.stripe() * stripe_bytes, a.ranks,
                            shape.stripes * stripe_bytes, at_group.in_stripe(),
                            shape.stripe_groups);
            T* out = static_cast<T*>(a.out->data) + at_group.row() * a.out->stride +
                     at_group.column();
            store_row_of(out, tile, at_group.length());
        }
    });
}

// The groups from `cursor` on that make up its row, summed over ranks and rounded to T.
template <int bits, class T>
inline void decode_row(T* row, GroupCursor& cursor, const DecodeNormArgs& a) {
    const CodecShape& shape = a.shape;
    const int64_t stripe_bytes = shape.stripe_groups * codec_bytes(bits);
    float tile[codec_group(bits)];
    for (const int64_t t = cursor.row(); cursor.row() == t; cursor.next()) {
        sum_group<bits>(tile, a.parts + cursor.stripe() * stripe_bytes, a.ranks,
                        shape.stripes * stripe_bytes, cursor.in_stripe(), shape.stripe_groups);
        store_row_of(row + cursor.column(), tile, smaller(codec_group(bits),
                                                          shape.width - cursor.column()));
    }
}

template <int bits, class T>
inline void decode_norm_of(const DecodeNormArgs& a) {
    const int64_t width = a.shape.width, padded = round_up(width, kLanes);
    const int64_t per_row = codec_row_groups(bits, width);
    parallel(a.shape.rows, 1 + (1 << 14) / width, [&](int64_t begin, int64_t end) {
        float* row = static_cast<float*>(scratch(Scratch::range, 4 * padded * sizeof(float)));
        float* weight = a.norm->weight.data == nullptr ? nullptr : row + 2 * padded;
        if (weight != nullptr) load_row(weight, at(a.norm->weight, 0), a.norm->weight.dtype, width);
        T* delta = reinterpret_cast<T*>(row + 3 * padded);
        NormArgs norm = *a.norm;
        norm.x = {delta, 0, a.is_bf16 ? DType::bf16 : DType::f32};
        GroupCursor cursor(a.shape, begin * per_row);
        for (int64_t t = begin; t < end; ++t) {
            decode_row<bits>(delta, cursor, a);
            norm_row(norm, t, row, row + padded, weight);
        }
    });
}

template <int bits>
inline void decode_norm_bits(const DecodeNormArgs& a) {
    a.is_bf16 ? decode_norm_of<bits, bf16>(a) : decode_norm_of<bits, float>(a);
}

template <int bits>
inline void encode_bits(const EncodeArgs& a) {
    a.x->dtype == DType::f32 ? encode_of<bits, float>(a) : encode_of<bits, bf16>(a);
}

template <int bits>
inline void decode_bits(const DecodeArgs& a) {
    a.out->dtype == DType::f32 ? decode_of<bits, float>(a) : decode_of<bits, bf16>(a);
}

inline void codec_encode(const EncodeArgs& a) {
    switch (a.shape.bits) {
        case 16: return encode_bits<16>(a);
        case 8: return encode_bits<8>(a);
        case 6: return encode_bits<6>(a);
        default: return encode_bits<4>(a);
    }
}

inline void codec_reduce(const ReduceArgs& a) {
    switch (a.bits) {
        case 16: return reduce_of<16>(a);
        case 8: return reduce_of<8>(a);
        case 6: return reduce_of<6>(a);
        default: return reduce_of<4>(a);
    }
}

inline void codec_decode_norm(const DecodeNormArgs& a) {
    switch (a.shape.bits) {
        case 16: return decode_norm_bits<16>(a);
        case 8: return decode_norm_bits<8>(a);
        case 6: return decode_norm_bits<6>(a);
        default: return decode_norm_bits<4>(a);
    }
}

inline void codec_decode(const DecodeArgs& a) {
    switch (a.shape.bits) {
        case 16: return decode_bits<16>(a);
        case 8: return decode_bits<8>(a);
        case 6: return decode_bits<6>(a);
        default: return decode_bits<4>(a);
    }
}

}  // namespace sidewinder::SW_LEVEL
