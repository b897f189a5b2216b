// Rows of any element type to and from float32 tiles. Tiles are padded to whole vectors with zeros,
// so that kernels know no tails and no element types.
#pragma once

#include "simd.h"

namespace sidewinder::SW_LEVEL {

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t element_size(DType dtype) {
    return dtype == DType::f32 ? 4 : dtype == DType::bf16 ? 2 : 1;
}

inline void* at(const Rows& rows, int64_t row, int64_t column = 0) {
    return static_cast<char*>(rows.data) +
           (row * rows.stride + column) * element_size(rows.dtype);
}

inline void* at(const State& state, int64_t slot, int64_t row, int64_t column) {
    return static_cast<char*>(state.data) +
           (slot * state.slot_stride + row * state.row_stride + column) * element_size(state.dtype);
}

template <class T>
inline void load_row_of(float* dst, const T* src, int64_t n) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(dst + i, load(src + i));
    if (i < n) {
        T tail[kLanes] = {};
        std::memcpy(tail, src + i, (n - i) * sizeof(T));
        store(dst + i, load(tail));
    }
}

// n elements of src as float32; dst has room for n rounded up to whole vectors, the rest zeroed.
inline void load_row(float* dst, const void* src, DType dtype, int64_t n) {
    if (dtype == DType::f32) {
        load_row_of(dst, static_cast<const float*>(src), n);
    } else if (dtype == DType::bf16) {
        load_row_of(dst, static_cast<const bf16*>(src), n);
    } else {
        load_row_of(dst, static_cast<const int8_t*>(src), n);
    }
}

template <class T>
inline void store_row_of(T* dst, const float* src, int64_t n) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(dst + i, load(src + i));
    if (i < n) {
        T tail[kLanes];
        store(tail, load(src + i));
        std::memcpy(dst + i, tail, (n - i) * sizeof(T));
    }
}

inline void store_row(void* dst, DType dtype, const float* src, int64_t n) {
    if (dtype == DType::f32) {
        store_row_of(static_cast<float*>(dst), src, n);
    } else {
        store_row_of(static_cast<bf16*>(dst), src, n);
    }
}

// A row that may be absent: `fill` in its place.
inline void load_optional_row(float* dst, const Rows& rows, int64_t column, int64_t n, float fill) {
    if (rows.data != nullptr) return load_row(dst, at(rows, 0, column), rows.dtype, n);
    for (int64_t i = 0; i < n; i += kLanes) store(dst + i, splat(fill));
}

inline void zero(float* dst, int64_t n) { std::memset(dst, 0, n * sizeof(float)); }

inline void copy(float* dst, const float* src, int64_t n) {
    std::memcpy(dst, src, n * sizeof(float));
}

}  // namespace sidewinder::SW_LEVEL
