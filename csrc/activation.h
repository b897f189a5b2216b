// A gated MLP's activation: act(gate) up.
#pragma once

#include "rows.h"
#include "thread_pool.h"

namespace sidewinder::SW_LEVEL {

constexpr int64_t kGateColumns = 1024;  // of a tile

// x times the probability that a normal variable is below it: max(x, 0) - |x| / 2 erfc(|x| / sqrt 2),
// with erfc(u) = e^(-u u) t P(t) and t = 1 / (1 + u / 2), to 4e-7 of itself.
// Of -infinity it is -0, the limit, where torch has NaN.
inline Vec gelu(Vec x) {
    const Vec zero = splat(0.0f);
    const Vec size = min(splat(16.0f), max(x, zero - x));  // beyond, nothing is left of the tail
    const Vec t = splat(1.0f) / fma(size, splat(0.35355339f), splat(1.0f));
    Vec p = splat(-5.90696931e-2f);
    p = fma(p, t, splat(2.84578443e-1f));
    p = fma(p, t, splat(-4.87206817e-1f));
    p = fma(p, t, splat(2.78074741e-1f));
    p = fma(p, t, splat(-2.66306419e-2f));
    p = fma(p, t, splat(2.02688858e-1f));
    p = fma(p, t, splat(2.43103296e-1f));
    p = fma(p, t, splat(2.82375365e-1f));
    p = fma(p, t, splat(2.82086402e-1f));
    const Vec tail = exp2_negative(size * size * splat(-0.5f * kLog2E));
    return max(zero, x) - splat(0.5f) * size * (t * p) * tail;
}

// The same by way of tanh: 1 + tanh(u) is twice the sigmoid of 2 u.
inline Vec gelu_tanh(Vec x) {
    const Vec inner = x * fma(x * x, splat(0.044715f), splat(1.0f));
    return x / (splat(1.0f) + exp(inner * splat(-1.59576912f)));
}

inline Vec activated(Activation activation, Vec x) {
    switch (activation) {
        case Activation::gelu: return gelu(x);
        case Activation::gelu_tanh: return gelu_tanh(x);
        case Activation::relu: return max(splat(0.0f), x);
        default: return silu(x);
    }
}

inline void gated_activation(const GatedActivationArgs& a) {
    const int64_t tiles = (a.width + kGateColumns - 1) / kGateColumns;
    parallel(a.rows * tiles, 8, [&](int64_t begin, int64_t end) {
        float gate[kGateColumns], up[kGateColumns];
        for (int64_t item = begin; item < end; ++item) {
            const int64_t t = item / tiles, c = item % tiles * kGateColumns;
            const int64_t n = smaller(kGateColumns, a.width - c);
            load_row(gate, at(a.gate, t, c), a.gate.dtype, n);
            load_row(up, at(a.up, t, c), a.up.dtype, n);
            for (int64_t i = 0; i < n; i += kLanes) {
                store(gate + i, activated(a.activation, load(gate + i)) * load(up + i));
            }
            store_row(at(a.y, t, c), a.y.dtype, gate, n);
        }
    });
}

}  // namespace sidewinder::SW_LEVEL
