// One group of a few-bit message: its values to payload and scale, and back.
//
// Bit for bit what src/sidewinder/ops/codec/reference.py says, at every level: integers times scales
// are exact in float32, and everything else is one correctly rounded operation after the other.
#pragma once

#include "codec_args.h"
#include "simd.h"

namespace sidewinder::SW_LEVEL {

typedef uint32_t UintVec __attribute__((vector_size(kVecBytes)));

// The extreme's magnitude in the upper 31 bits, and 1 for a positive one below: comparing such keys
// prefers the positive of two, and puts infinity and NaN on top.
inline UintVec extreme_key(Vec v) {
    const UintVec flipped = (UintVec)v ^ 0x80000000u;
    return flipped << 1 | flipped >> 31;
}

#if defined(SW_AVX512)

inline UintVec larger_key(UintVec a, UintVec b) {
    return (UintVec)_mm512_max_epu32((__m512i)a, (__m512i)b);
}
inline uint32_t largest_key(UintVec keys) { return _mm512_reduce_max_epu32((__m512i)keys); }
// The low bytes of 32 integers.
inline void store_low_bytes(uint8_t* p, const UintVec (&v)[2]) {
    for (int i = 0; i < 2; ++i) {
        const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)v[i]);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, bytes);
    }
}

#elif defined(SW_AVX2)

inline UintVec larger_key(UintVec a, UintVec b) {
    return (UintVec)_mm256_max_epu32((__m256i)a, (__m256i)b);
}
inline uint32_t largest_key(UintVec keys) {
    const __m128i low = _mm256_castsi256_si128((__m256i)keys);
    __m128i top = _mm_max_epu32(low, _mm256_extracti128_si256((__m256i)keys, 1));
    top = _mm_max_epu32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epu32(top, _mm_shuffle_epi32(top, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(top));
}
// The low bytes of 32 integers.
inline void store_low_bytes(uint8_t* p, const UintVec (&v)[4]) {
    const auto low = [&](int i) { return (__m256i)(v[i] & 0xffu); };
    const __m256i words = _mm256_packus_epi16(_mm256_packus_epi32(low(0), low(1)),
                                              _mm256_packus_epi32(low(2), low(3)));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_permutevar8x32_epi32(words, order));
}

#elif defined(SW_NEON)

inline UintVec larger_key(UintVec a, UintVec b) {
    return (UintVec)vmaxq_u32((uint32x4_t)a, (uint32x4_t)b);
}
inline uint32_t largest_key(UintVec keys) { return vmaxvq_u32((uint32x4_t)keys); }
// The low bytes of 32 integers.
inline void store_low_bytes(uint8_t* p, const UintVec (&v)[8]) {
    for (int i = 0; i < 4; ++i) {
        const uint16x4_t low = vmovn_u32((uint32x4_t)v[2 * i]);
        const uint16x4_t high = vmovn_u32((uint32x4_t)v[2 * i + 1]);
        vst1_u8(p + 8 * i, vmovn_u16(vcombine_u16(low, high)));
    }
}

#else

inline UintVec larger_key(UintVec a, UintVec b) { return a > b ? a : b; }
inline uint32_t largest_key(UintVec keys) {
    uint32_t top = keys[0];
    for (int i = 1; i < kLanes; ++i) top = top > keys[i] ? top : keys[i];
    return top;
}
// The low bytes of 32 integers.
inline void store_low_bytes(uint8_t* p, const UintVec (&v)[8]) {
    for (int i = 0; i < 32; ++i) p[i] = static_cast<uint8_t>(v[i / kLanes][i % kLanes]);
}

#endif

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

constexpr uint16_t kNotFinite = 0x7fc0;

// The upper half of the scale that an extreme gives; `kNotFinite` for infinity and NaN.
template <int bits>
inline uint16_t scale_of(uint32_t key) {
    constexpr float levels = 1 << (bits - 1);
    constexpr float smallest = 0x1p-126f, largest = 0x1.fep127f / levels;
    if (key >> 1 >= 0x7f800000u) return kNotFinite;
    const uint32_t exact = bits_of(float_of(key >> 1) / levels);
    float scale = float_of((exact + 0x7fffu + (exact >> 16 & 1u)) & 0xffff0000u);
    scale = scale < smallest ? smallest : scale > largest ? largest : scale;
    const uint32_t sign = key > 1 ? key << 15 : 0;  // zeros, of either sign, have a positive scale
    return static_cast<uint16_t>(bits_of(scale) >> 16 | sign);
}

constexpr uint64_t bytes_of(uint64_t byte) { return byte * 0x0101010101010101u; }

// Codes [32], eight to a word, as int6 or int4 payload.
template <int bits>
inline void pack(uint8_t* payload, const uint8_t* codes) {
    uint64_t c[4], packed[3];
    std::memcpy(c, codes, sizeof c);
    constexpr uint64_t low = bytes_of(0x0f), pair = bytes_of(0x03);
    for (int i = 0; i < 2; ++i) packed[i] = (c[i] & low) | (c[i + 2] & low) << 4;
    if constexpr (bits == 6) {
        packed[2] = (c[0] >> 4 & pair) | (c[1] >> 4 & pair) << 2 | (c[2] >> 4 & pair) << 4 |
                    (c[3] >> 4 & pair) << 6;
    }
    std::memcpy(payload, packed, codec_payload(bits));
}

template <int bits>
inline void unpack(uint8_t* codes, const uint8_t* payload) {
    uint64_t c[4], packed[3] = {};
    std::memcpy(packed, payload, codec_payload(bits));
    constexpr uint64_t low = bytes_of(0x0f), pair = bytes_of(0x03);
    for (int i = 0; i < 2; ++i) {
        c[i] = packed[i] & low;
        c[i + 2] = packed[i] >> 4 & low;
    }
    if constexpr (bits == 6) {
        for (int i = 0; i < 4; ++i) c[i] |= (packed[2] >> 2 * i & pair) << 4;
    }
    std::memcpy(codes, c, sizeof c);
}

// Integers of a group from x times the reciprocal scale; biased by `levels` below 8 bits.
template <int bits, class T>
inline void quantise(uint8_t* codes, const T* x, float reciprocal) {
    constexpr float levels = 1 << (bits - 1);
    // The nearest integer (ties to even) ends up in the low mantissa bits of the sum.
    constexpr float magic = 0x1.8p23f + (bits == 8 ? 0.0f : levels);
    for (int64_t i = 0; i < codec_group(bits); i += 32) {
        UintVec shifted[32 / kLanes];
        for (int v = 0; v < 32 / kLanes; ++v) {
            const Vec scaled = load(x + i + v * kLanes) * splat(reciprocal);
            const Vec clamped = max(splat(-levels), min(splat(levels - 1), scaled));
            shifted[v] = (UintVec)(clamped + splat(magic));
        }
        store_low_bytes(codes + i, shifted);
    }
}

// One whole group at x.
template <int bits, class T>
inline void encode_group(uint8_t* payload, uint8_t* scale, const T* x) {
    constexpr int64_t group = codec_group(bits);
    if constexpr (bits == 16) {
        bf16 values[group];
        for (int64_t i = 0; i < group; i += kLanes) store(values + i, load(x + i));
        std::memcpy(payload, values, sizeof values);
    } else {
        UintVec keys = extreme_key(load(x));
        for (int64_t i = kLanes; i < group; i += kLanes) {
            keys = larger_key(keys, extreme_key(load(x + i)));
        }
        const uint16_t half = scale_of<bits>(largest_key(keys));
        std::memcpy(scale, &half, sizeof half);
        uint8_t codes[group];
        if (half == kNotFinite) {
            std::memset(codes, bits == 8 ? 0 : 1 << (bits - 1), group);
        } else {
            quantise<bits>(codes, x, 1.0f / float_of(uint32_t{half} << 16));
        }
        if constexpr (bits == 8) {
            std::memcpy(payload, codes, group);
        } else {
            pack<bits>(payload, codes);
        }
    }
}

// The values of a group of one message, stored to or added to `tile`.
template <int bits, bool adds>
inline void decode_group(float* tile, const uint8_t* payload, const uint8_t* scale) {
    constexpr int64_t group = codec_group(bits);
    const auto put = [&](int64_t i, Vec v) { store(tile + i, adds ? load(tile + i) + v : v); };
    if constexpr (bits == 16) {
        bf16 values[group];
        std::memcpy(values, payload, sizeof values);
        for (int64_t i = 0; i < group; i += kLanes) put(i, load(values + i));
    } else {
        uint16_t half;
        std::memcpy(&half, scale, sizeof half);
        const Vec factor = splat(float_of(uint32_t{half} << 16));
        uint8_t codes[group];
        const uint8_t* bytes = payload;
        if constexpr (bits < 8) {
            unpack<bits>(codes, payload);
            bytes = codes;
        }
        const Vec bias = splat(bits == 8 ? 0.0f : 1 << (bits - 1));
        for (int64_t i = 0; i < group; i += kLanes) {
            put(i, (load(reinterpret_cast<const int8_t*>(bytes) + i) - bias) * factor);
        }
    }
}

}  // namespace sidewinder::SW_LEVEL
