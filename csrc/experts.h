// A router's choice, and experts: every row through the MLPs that were chosen for it.
#pragma once

#include <limits>
#include <stdexcept>

#include "activation.h"
#include "linear.h"

namespace sidewinder::SW_LEVEL {

constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kTaken = -std::numeric_limits<float>::infinity();

// One piece of scratch memory, handed out in parts that begin with whole lines of the cache.
class Parts {
   public:
    static constexpr int64_t kLine = 64;
    static int64_t size(int64_t bytes) { return round_up(bytes, kLine); }

    Parts(Scratch purpose, int64_t bytes) : next_(static_cast<char*>(scratch(purpose, bytes))) {}

    template <class T>
    T* take(int64_t count) {
        T* part = reinterpret_cast<T*>(next_);
        next_ += size(count * sizeof(T));
        return part;
    }

    Rows rows(int64_t count, int64_t width, DType dtype) {
        return {take<char>(count * width * element_size(dtype)), width, dtype};
    }

   private:
    char* next_;
};

// The logits of a row become scores; `row` has room for whole vectors.
inline void make_scores(float* row, int64_t n, bool softmax) {
    const int64_t padded = round_up(n, kLanes);
    if (!softmax) {
        for (int64_t i = 0; i < padded; i += kLanes) {
            const Vec e = exp(splat(0.0f) - load(row + i));
            store(row + i, splat(1.0f) / (splat(1.0f) + e));
        }
        return;
    }
    float largest = row[0];
    for (int64_t i = 1; i < n; ++i) largest = row[i] > largest ? row[i] : largest;
    for (int64_t i = n; i < padded; ++i) row[i] = kLowest;
    float total = 0.0f;
    for (int64_t i = 0; i < padded; i += kLanes) store(row + i, exp(load(row + i) - splat(largest)));
    for (int64_t i = 0; i < n; ++i) total += row[i];
    for (int64_t i = 0; i < n; ++i) row[i] /= total;
}

// Where the `count` highest are, of equal ones the first; they become kTaken. There are as many that
// are not.
inline void take_highest(float* values, int64_t n, int64_t count, int32_t* where) {
    for (int64_t j = 0; j < count; ++j) {
        int64_t best = 0;
        for (int64_t i = 1; i < n; ++i) best = values[i] > values[best] ? i : best;
        where[j] = static_cast<int32_t>(best);
        values[best] = kTaken;
    }
}

// Marks experts as taken whose group is none of those with the largest sums of their best two.
inline void leave_groups_out(const RouteArgs& a, float* rank_by, float* sums, int32_t* best) {
    const int64_t width = a.experts / a.groups;
    for (int64_t group = 0; group < a.groups; ++group) {
        float first = kLowest, second = kLowest;
        for (int64_t i = group * width; i < (group + 1) * width; ++i) {
            const float value = rank_by[i];
            second = value > first ? first : value > second ? value : second;
            first = value > first ? value : first;
        }
        const float sum = width > 1 ? first + second : first;
        sums[group] = sum > kLowest ? sum : kLowest;
    }
    take_highest(sums, a.groups, a.groups_chosen, best);
    for (int64_t i = 0; i < a.experts; ++i) {
        if (sums[i / width] != kTaken) rank_by[i] = kTaken;
    }
}

// `rank_by`, `sums` and `best` have room for all experts or groups.
inline void choose(const RouteArgs& a, const float* scores, int64_t t, float* rank_by, float* sums,
                   int32_t* best) {
    int32_t* chosen = a.chosen + t * a.n_chosen;
    float* shares = a.shares + t * a.n_chosen;
    for (int64_t i = 0; i < a.experts; ++i) {
        const float value = scores[i] + (a.bias == nullptr ? 0.0f : a.bias[i]);
        // What is no number counts as the least: experts are chosen that exist.
        rank_by[i] = value > kLowest ? value : kLowest;
    }
    if (a.groups > 1) leave_groups_out(a, rank_by, sums, best);
    take_highest(rank_by, a.experts, a.n_chosen, chosen);
    float total = a.least_sum;
    for (int64_t j = 0; j < a.n_chosen; ++j) total += scores[chosen[j]];
    for (int64_t j = 0; j < a.n_chosen; ++j) {
        shares[j] = scores[chosen[j]] / (a.normalised ? total : 1.0f) * a.scale;
    }
}

inline void route(const RouteArgs& a) {
    const int64_t stride = round_up(a.experts, kLanes), each = Parts::size(a.experts * 4);
    Parts memory(Scratch::experts, Parts::size(a.rows * stride * 4));
    float* scores = memory.take<float>(a.rows * stride);
    LinearArgs logits{};
    logits.x = a.x;
    logits.weight = a.weight;
    logits.y = {scores, stride, DType::f32};
    logits.rows = a.rows;
    logits.inputs = a.width;
    logits.outputs = a.experts;
    linear(logits);
    parallel(a.rows, 8, [&](int64_t begin, int64_t end) {
        Parts own(Scratch::range, 3 * each);
        float *rank_by = own.take<float>(a.experts), *sums = own.take<float>(a.experts);
        int32_t* best = own.take<int32_t>(a.experts);
        for (int64_t t = begin; t < end; ++t) {
            make_scores(scores + t * stride, a.experts, a.softmax);
            choose(a, scores + t * stride, t, rank_by, sums, best);
        }
    });
}

// Pairs of a row and one of its experts, `row * n_chosen + j`, by expert and in order: those of
// expert `e` are order[starts[e]] to order[starts[e + 1] - 1]. Returns the most of an expert.
inline int64_t sort_pairs(const ExpertArgs& a, int64_t* starts, int64_t* order) {
    const int64_t count = a.rows * a.n_chosen;
    for (int64_t e = 0; e <= a.experts; ++e) starts[e] = 0;
    for (int64_t pair = 0; pair < count; ++pair) {
        const int32_t e = a.chosen[pair];
        if (e < 0 || e >= a.experts) throw std::invalid_argument("chosen: no such expert");
        ++starts[e];
    }
    int64_t most = 0, end = 0;
    for (int64_t e = 0; e <= a.experts; ++e) {
        most = larger(most, starts[e]);
        end += starts[e];
        starts[e] = end;  // of its pairs; filling them in from behind makes it their start
    }
    for (int64_t pair = count - 1; pair >= 0; --pair) order[--starts[a.chosen[pair]]] = pair;
    // An expert's rows are different, or they would be more than memory is made for, and two threads
    // might add to one of them.
    for (int64_t i = 1; i < count; ++i) {
        const int64_t one = order[i - 1], next = order[i];
        if (one / a.n_chosen == next / a.n_chosen && a.chosen[one] == a.chosen[next]) {
            throw std::invalid_argument("chosen: an expert twice for one row");
        }
    }
    return most;
}

// Adds the shares of one expert's results to the rows that chose it.
inline void add_terms(const ExpertArgs& a, const int64_t* pairs, int64_t count, const Rows& out,
                      float* totals, int64_t stride) {
    parallel(count, 1 + (1 << 14) / a.width, [&](int64_t begin, int64_t end) {
        float* term = static_cast<float*>(scratch(Scratch::range, stride * sizeof(float)));
        for (int64_t i = begin; i < end; ++i) {
            float* total = totals + pairs[i] / a.n_chosen * stride;
            const Vec share = splat(a.shares[pairs[i]]);
            load_row(term, at(out, i), out.dtype, a.width);
            for (int64_t c = 0; c < stride; c += kLanes) {
                store(total + c, fma(share, load(term + c), load(total + c)));
            }
        }
    });
}

// Expert after expert, each with all rows that chose it.
inline void experts(const ExpertArgs& a) {
    const DType dtype = a.x.dtype;
    const int64_t pairs = a.rows * a.n_chosen, stride = round_up(a.width, kLanes);
    const int64_t row_bytes = a.width * element_size(dtype);
    const int64_t inner_bytes = a.inner * element_size(dtype);
    Parts memory(Scratch::experts,
                 Parts::size((a.experts + 1) * 8) + Parts::size(pairs * 8) +
                     Parts::size(a.rows * stride * 4) + 2 * Parts::size(a.rows * row_bytes) +
                     2 * Parts::size(a.rows * inner_bytes));
    int64_t* starts = memory.take<int64_t>(a.experts + 1);
    int64_t* order = memory.take<int64_t>(pairs);
    float* totals = memory.take<float>(a.rows * stride);
    const int64_t most = sort_pairs(a, starts, order);
    const Rows own = memory.rows(most, a.width, dtype), out = memory.rows(most, a.width, dtype);
    const Rows up = memory.rows(most, a.inner, dtype), gate = memory.rows(most, a.inner, dtype);
    zero(totals, a.rows * stride);
    for (int64_t e = 0; e < a.experts; ++e) {
        const int64_t *of_expert = order + starts[e], count = starts[e + 1] - starts[e];
        if (count == 0) continue;
        for (int64_t i = 0; i < count; ++i) {
            std::memcpy(at(own, i), at(a.x, of_expert[i] / a.n_chosen), row_bytes);
        }
        const auto multiply = [&](const LinearArgs& matrix, const Rows& x, const Rows& y) {
            LinearArgs product = matrix;
            product.x = x;
            product.y = y;
            product.rows = count;
            a.multiply(product);
        };
        multiply(a.up[e], own, up);
        if (a.gate != nullptr) multiply(a.gate[e], own, gate);
        GatedActivationArgs opened{a.gate != nullptr ? gate : up, up, gate, count, a.inner,
                                   a.activation};
        gated_activation(opened);
        multiply(a.down[e], gate, out);
        add_terms(a, of_expert, count, out, totals, stride);
    }
    for (int64_t t = 0; t < a.rows; ++t) store_row(at(a.y, t), a.y.dtype, totals + t * stride, a.width);
}

}  // namespace sidewinder::SW_LEVEL
