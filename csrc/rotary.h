// Rotary position embeddings: channels j and j + pairs of every head turn by position * frequency[j].
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kRotaryPairs = 256;  // of a tile; whole vectors

typedef double DoubleVec __attribute__((vector_size(2 * kVecBytes)));
typedef int64_t LongVec __attribute__((vector_size(2 * kVecBytes)));

// Of angles up to 2^24, within 1e-7: in float64 the nearest multiple of a quarter turn is taken off,
// which leaves 2e-9 of error, and polynomials do the rest. The same bits on every level.
inline void cos_sin(Vec angle, Vec& cos, Vec& sin) {
    const DoubleVec precise = __builtin_convertvector(angle, DoubleVec);
    const double magic = 0x1.8p52;
    const DoubleVec shifted = precise * 0.6366197723675814 + magic;  // low bits hold the nearest integer
    const Vec x = __builtin_convertvector(precise - (shifted - magic) * 1.5707963267948966, Vec);
    const IntVec quarters = __builtin_convertvector((LongVec)shifted, IntVec);
    const Vec square = x * x;
    const Vec odd_series = (splat(-1.9517224e-4f) * square + splat(8.332178e-3f)) * square;
    const Vec sine = x + x * square * (odd_series - splat(0.16666655f));
    const Vec even_series = (splat(2.4438372e-5f) * square - splat(1.3887367e-3f)) * square;
    const Vec cosine = splat(1.0f) - splat(0.5f) * square +
                       square * square * (even_series + splat(4.1666646e-2f));
    const IntVec odd = (quarters & 1) != 0;
    cos = odd ? sine : cosine;
    sin = odd ? cosine : sine;
    cos = ((quarters + 1) & 2) != 0 ? -cos : cos;
    sin = (quarters & 2) != 0 ? -sin : sin;
}

// n pairs from column c on of every head of a row.
inline void turn_heads(const Rows& rows, int64_t t, int64_t heads, const RotaryArgs& a, int64_t c,
                       int64_t n, const float* cos, const float* sin) {
    float first[kRotaryPairs], second[kRotaryPairs];
    for (int64_t h = 0; h < heads; ++h) {
        void* const first_at = at(rows, t, h * a.width + c);
        void* const second_at = at(rows, t, h * a.width + a.pairs + c);
        load_row(first, first_at, rows.dtype, n);
        load_row(second, second_at, rows.dtype, n);
        for (int64_t i = 0; i < n; i += kLanes) {
            const Vec x = load(first + i), y = load(second + i);
            store(first + i, x * load(cos + i) - y * load(sin + i));
            store(second + i, y * load(cos + i) + x * load(sin + i));
        }
        store_row(first_at, rows.dtype, first, n);
        store_row(second_at, rows.dtype, second, n);
    }
}

inline void rotary(const RotaryArgs& a) {
    const int64_t per_row = (a.heads + a.kv_heads + 4) * a.pairs;  // angles take as long as some heads
    parallel(a.rows, 1 + (1 << 13) / per_row, [&](int64_t begin, int64_t end) {
        float cos[kRotaryPairs], sin[kRotaryPairs];
        for (int64_t t = begin; t < end; ++t) {
            const Vec position = splat(static_cast<float>(a.positions[t]));
            for (int64_t c = 0; c < a.pairs; c += kRotaryPairs) {
                const int64_t n = smaller(kRotaryPairs, a.pairs - c);
                load_row(cos, a.frequencies + c, DType::f32, n);
                for (int64_t i = 0; i < n; i += kLanes) {
                    Vec cosine, sine;
                    cos_sin(position * load(cos + i), cosine, sine);
                    store(cos + i, cosine);
                    store(sin + i, sine);
                }
                turn_heads(a.q, t, a.heads, a, c, n, cos, sin);
                turn_heads(a.k, t, a.kv_heads, a, c, n, cos, sin);
            }
        }
    });
}

}  // namespace sidewinder::SW_LEVEL
