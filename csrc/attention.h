// Attention of single tokens over keys and values in pages.
//
// Some neighbouring key heads of one sequence at a time, with the query heads that share them: tokens
// go by in blocks, of which come scores, the largest so far, weights and the sum of weighted values,
// all in float32. A token's heads lie together and are read together; pages lie anywhere, so no
// processor sees which rows are next, and they are asked for ahead.
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kAttentionTokens = 64;       // of a block; whole vectors
constexpr int64_t kAtOnce = 4;                 // tokens whose rows are read together
constexpr int64_t kAttentionRowBytes = 4096;   // of a token's keys that one range reads, about

// What one query head has so far. `q` is scaled, for powers of two; both rows are padded with zeros.
struct AttentionHead {
    int64_t column;  // of its keys in a token's row, from the range's first one
    float* q;
    float* out;
    float best, total;
    float weights[kAttentionTokens];
};

// A range's key heads of one sequence, and their query heads.
struct AttentionRange {
    int64_t s, first, heads;  // query heads
    AttentionHead* head;
};

// A block's rows, from the range's first column on; those behind the last are the last one's again.
template <class T>
struct BlockRows {
    const T* row[kAttentionTokens + 2 * kAtOnce];
};

template <class T>
inline BlockRows<T> block_rows(const AttentionArgs& a, const Rows& pages, int64_t s, int64_t column,
                               int64_t first, int64_t n) {
    BlockRows<T> rows;
    const int64_t* places = a.read + s * a.read_stride + first;
    for (int64_t t = 0; t < n; ++t) {
        rows.row[t] = static_cast<const T*>(at(pages, places[t], column));
    }
    for (int64_t t = n; t < n + 2 * kAtOnce; ++t) rows.row[t] = rows.row[n - 1];
    return rows;
}

template <class T>
SW_INLINE void ask_rows(const T* const* rows, int64_t column, int64_t width) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t r = 0; r < kAtOnce; ++r) {
        for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(rows[r] + column + i);
    }
}

// The first elements of a vector, zeros behind them.
template <class T>
SW_INLINE Vec load_first(const T* row, int64_t n) {
    T tail[kLanes] = {};
    std::memcpy(tail, row, n * sizeof(T));
    return load(tail);
}

template <class T>
SW_INLINE Quad four_scores(const AttentionHead& head, const T* const* keys, int64_t width) {
    Vec total[kAtOnce];
    for (Vec& each : total) each = splat(0.0f);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        const Vec part = load(head.q + i);
        for (int64_t r = 0; r < kAtOnce; ++r) {
            total[r] = fma(part, load(keys[r] + head.column + i), total[r]);
        }
    }
    for (int64_t r = 0; i < width && r < kAtOnce; ++r) {
        const Vec last = load_first(keys[r] + head.column + i, width - i);
        total[r] = fma(load(head.q + i), last, total[r]);
    }
    return sum4(total[0], total[1], total[2], total[3]);
}

template <class T>
SW_INLINE void add_four_values(AttentionHead& head, int64_t t, const T* const* values,
                               int64_t width) {
    Vec weight[kAtOnce];
    for (int64_t r = 0; r < kAtOnce; ++r) weight[r] = splat(head.weights[t + r]);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        Vec total = load(head.out + i);
        for (int64_t r = 0; r < kAtOnce; ++r) {
            total = fma(weight[r], load(values[r] + head.column + i), total);
        }
        store(head.out + i, total);
    }
    for (int64_t r = 0; i < width && r < kAtOnce; ++r) {
        const Vec last = load_first(values[r] + head.column + i, width - i);
        store(head.out + i, fma(weight[r], last, load(head.out + i)));
    }
}

inline float largest_of(const float* values, float least) {
    Vec largest = splat(least);
    for (int64_t t = 0; t < kAttentionTokens; t += kLanes) largest = max(load(values + t), largest);
    for (int64_t lane = 0; lane < kLanes; ++lane) least = largest[lane] > least ? largest[lane] : least;
    return least;
}

// Scores of a block of n tokens to weights; what there was is brought to the new largest score. NaN
// is not the largest, but its weight is NaN.
inline void weigh_block(AttentionHead& head, int64_t n, int64_t padded) {
    for (int64_t t = n; t < kAttentionTokens; ++t) head.weights[t] = -__builtin_inff();
    const float better = largest_of(head.weights, head.best);
    const Vec largest = splat(better), shrink = exp2_negative(splat(head.best) - largest);
    Vec sums = splat(0.0f);
    for (int64_t t = 0; t < n; t += kLanes) {
        const Vec scores = load(head.weights + t);
        // What is not there, and what is that small, counts as nothing.
        const Vec weights = scores - largest < splat(-126.0f) ? splat(0.0f)
                                                               : exp2_negative(scores - largest);
        store(head.weights + t, weights);
        sums = sums + weights;
    }
    if (better != head.best) {
        for (int64_t i = 0; i < padded; i += kLanes) {
            store(head.out + i, load(head.out + i) * shrink);
        }
    }
    head.total = head.total * shrink[0] + sum(sums);
    head.best = better;
}

template <class T>
inline void attend_block(const AttentionArgs& a, const AttentionRange& range, int64_t first,
                         int64_t n) {
    const int64_t padded = round_up(a.width, kLanes);
    const BlockRows<T> keys = block_rows<T>(a, a.k, range.s, range.first, first, n);
    const BlockRows<T> values = block_rows<T>(a, a.v, range.s, range.first, first, n);
    for (int64_t t = 0; t < n; t += kAtOnce) {
        const T* const* next = t + kAtOnce < n ? keys.row + t + kAtOnce : values.row;
        for (int64_t h = 0; h < range.heads; ++h) {
            AttentionHead& head = range.head[h];
            ask_rows(next, head.column, a.width);
            const Quad scores = four_scores(head, keys.row + t, a.width);
            std::memcpy(head.weights + t, &scores, sizeof scores);
        }
    }
    for (int64_t h = 0; h < range.heads; ++h) weigh_block(range.head[h], n, padded);
    for (int64_t t = 0; t < n; t += kAtOnce) {
        for (int64_t h = 0; h < range.heads; ++h) {
            ask_rows(values.row + t + kAtOnce, range.head[h].column, a.width);
            add_four_values(range.head[h], t, values.row + t, a.width);
        }
    }
}

// Scratch for so many query heads.
inline AttentionHead* attention_heads(int64_t heads, int64_t padded) {
    const size_t rows = 2 * padded * sizeof(float);
    char* memory =
        static_cast<char*>(scratch(Scratch::range, heads * (rows + sizeof(AttentionHead))));
    float* numbers = reinterpret_cast<float*>(memory);
    AttentionHead* head = reinterpret_cast<AttentionHead*>(memory + heads * rows);
    for (int64_t h = 0; h < heads; ++h) {
        head[h].q = numbers + 2 * h * padded;
        head[h].out = head[h].q + padded;
    }
    return head;
}

inline void begin_head(const AttentionArgs& a, AttentionHead& head, const void* q, int64_t padded) {
    load_row(head.q, q, a.q.dtype, a.width);
    for (int64_t i = 0; i < padded; i += kLanes) {
        store(head.q + i, load(head.q + i) * splat(a.scale * kLog2E));
    }
    zero(head.out, padded);
    head.best = -__builtin_inff();
    head.total = 0.0f;
}

inline void end_head(const AttentionArgs& a, const AttentionHead& head, void* y, int64_t padded) {
    const Vec share = splat(1.0f / head.total);
    for (int64_t i = 0; i < padded; i += kLanes) store(head.out + i, load(head.out + i) * share);
    store_row(y, a.y.dtype, head.out, a.width);
}

// Key heads from `begin` to `end` of sequence s.
template <class T>
inline void attend(const AttentionArgs& a, AttentionHead* head, int64_t s, int64_t begin,
                   int64_t end) {
    const int64_t padded = round_up(a.width, kLanes), repeats = a.heads / a.kv_heads;
    const AttentionRange range{s, begin * a.width, (end - begin) * repeats, head};
    const int64_t column = begin * repeats * a.width;  // of q and y
    for (int64_t h = 0; h < range.heads; ++h) {
        head[h].column = h / repeats * a.width;
        begin_head(a, head[h], at(a.q, s, column + h * a.width), padded);
    }
    for (int64_t first = 0; first < a.lengths[s]; first += kAttentionTokens) {
        attend_block<T>(a, range, first, smaller(kAttentionTokens, a.lengths[s] - first));
    }
    for (int64_t h = 0; h < range.heads; ++h) {
        end_head(a, head[h], at(a.y, s, column + h * a.width), padded);
    }
}

// Key heads that a range reads together: enough for long reads, and every thread has some.
inline int64_t heads_together(const AttentionArgs& a) {
    const int64_t row = a.width * element_size(a.k.dtype);
    const int64_t wanted = (kAttentionRowBytes + row - 1) / row;
    const int64_t most = larger(1, a.kv_heads * a.sequences / (2 * threads()));
    return smaller(a.kv_heads, smaller(wanted, most));
}

inline void paged_attention(const AttentionArgs& a) {
    const int64_t padded = round_up(a.width, kLanes), repeats = a.heads / a.kv_heads;
    const int64_t together = heads_together(a);
    const int64_t ranges = (a.kv_heads + together - 1) / together;
    // Sequences follow each other, so that every thread has long and short ones.
    parallel(ranges * a.sequences, 1, [&](int64_t begin, int64_t end) {
        AttentionHead* head = attention_heads(together * repeats, padded);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t s = item % a.sequences, first = item / a.sequences * together;
            const int64_t last = smaller(a.kv_heads, first + together);
            if (a.k.dtype == DType::f32) attend<float>(a, head, s, first, last);
            else attend<bf16>(a, head, s, first, last);
        }
    });
}

}  // namespace sidewinder::SW_LEVEL
