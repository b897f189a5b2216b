// Fused training kernels for the demo models: selective scan and causal depthwise convolution,
// each forward and backward, for one thread, float32.
//
// Tensors are dense and row-major, time before channels:
//   u, dt, z, out   [batch, length, channels]
//   B, C            [batch, length, groups, states]   channel d reads group d / (channels / groups)
//   A               [channels, states], or [channels, 1] when all states of a channel share a decay
// The recurrence, for every channel d and state n:
//   h[t, n] = exp(dt[t] * A[n]) * h[t-1, n] + dt[t] * u[t] * B[t, n]
//   out[t]  = (sum_n C[t, n] * h[t, n] + D * u[t]) * silu(z[t])        (no gate when z is null)
//
// SIMD lanes run over channels. The forward pass stores the state at the start of every chunk of
// kChunk steps; the backward pass recomputes the states of one chunk at a time from there.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr int kChunk = 8;
constexpr int kMaxStates = 64;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

static inline Vec load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<Unaligned*>(p) = v; }
static inline Vec splat(float x) { return x - Vec{}; }

// 2^x for x <= 0 (clamped at -126), relative error about 2e-7.
static inline Vec exp2_nonpositive(Vec x) {
  x = x < -126.0f ? splat(-126.0f) : x;
  const IntVec k = __builtin_convertvector(x - 0.5f, IntVec);  // truncation rounds to nearest
  const Vec r = x - __builtin_convertvector(k, Vec);
  Vec p = r * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  const IntVec scale = (k + 127) << 23;
  Vec s;
  std::memcpy(&s, &scale, sizeof s);
  return p * s;
}

constexpr float kLog2e = 1.442695040888963f;

static inline Vec sigmoid(Vec x) {
  const Vec e = exp2_nonpositive((x < 0.0f ? x : -x) * kLog2e);
  const Vec s = 1.0f / (1.0f + e);
  return x < 0.0f ? e * s : s;
}

static inline float sum_lanes(Vec v) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}

struct Scan {  // sizes shared by both passes; field order matches scan.py
  int64_t batch, length, channels, groups, states, shared_decay;
};

static inline int64_t chunks_of(const Scan& s) { return (s.length + kChunk - 1) / kChunk; }

// A of one block of channels, transposed to lanes and scaled so that exp becomes 2^x.
template <bool kShared>
static void load_decay(const Scan& s, const float* A, int64_t d, Vec* a) {
  const int n_decay = kShared ? 1 : static_cast<int>(s.states);
  for (int n = 0; n < n_decay; ++n)
    for (int i = 0; i < kLanes; ++i) a[n][i] = A[(d + i) * n_decay + n] * kLog2e;
}

template <int kN, bool kShared>
static void forward(const Scan& s, const float* u, const float* dt, const float* A, const float* B,
                    const float* C, const float* D, const float* z, float* out, float* saved) {
  const int N = kN ? kN : static_cast<int>(s.states);
  const int64_t per_group = s.channels / s.groups, blocks = s.channels / kLanes;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t d = 0; d < s.channels; d += kLanes) {
      Vec a[kMaxStates], h[kMaxStates] = {};
      load_decay<kShared>(s, A, d, a);
      const Vec skip = load(D + d);
      for (int64_t t = 0; t < s.length; ++t) {
        if (t % kChunk == 0) {
          float* to = saved + (((b * chunks_of(s) + t / kChunk) * blocks + d / kLanes) * N) * kLanes;
          for (int n = 0; n < N; ++n) store(to + n * kLanes, h[n]);
        }
        const int64_t at = (b * s.length + t) * s.channels + d;
        const int64_t bc = ((b * s.length + t) * s.groups + d / per_group) * N;
        const Vec step = load(dt + at), x = load(u + at), dx = step * x;
        Vec y = skip * x;
        Vec decay = kShared ? exp2_nonpositive(step * a[0]) : Vec{};
        for (int n = 0; n < N; ++n) {
          if (!kShared) decay = exp2_nonpositive(step * a[n]);
          h[n] = decay * h[n] + dx * B[bc + n];
          y += h[n] * C[bc + n];
        }
        if (z) {
          const Vec g = load(z + at);
          y *= g * sigmoid(g);
        }
        store(out + at, y);
      }
    }
}

struct Grads {
  float *u, *dt, *A, *B, *C, *D, *z;  // A is [channels, states] or [channels, 1]; z may be null
};

// One chunk of one channel block, backwards in time. `gh` carries d loss / d h to earlier chunks;
// `gB`, `gC` [kChunk, N] collect lanes over the blocks of a group.
template <int kN, bool kShared>
static void backward_chunk(const Scan& s, int64_t b, int64_t d, int64_t t0, const float* u,
                           const float* dt, const float* B, const float* C, Vec skip,
                           const float* z, const float* grad, const Vec* a, const float* saved,
                           const Grads& out, Vec* gh, Vec* gA, Vec& gD, Vec* gB, Vec* gC) {
  const int N = kN ? kN : static_cast<int>(s.states);
  const int steps = static_cast<int>(std::min<int64_t>(kChunk, s.length - t0));
  const int64_t group = d / (s.channels / s.groups);
  Vec h[kChunk + 1][kN ? kN : kMaxStates], decay[kChunk][kShared ? 1 : (kN ? kN : kMaxStates)];
  Vec ys[kChunk];
  for (int n = 0; n < N; ++n) h[0][n] = load(saved + n * kLanes);
  for (int k = 0; k < steps; ++k) {  // recompute the chunk's states
    const int64_t at = (b * s.length + t0 + k) * s.channels + d;
    const int64_t bc = ((b * s.length + t0 + k) * s.groups + group) * N;
    const Vec step = load(dt + at), x = load(u + at), dx = step * x;
    Vec y = skip * x;
    if (kShared) decay[k][0] = exp2_nonpositive(step * a[0]);
    for (int n = 0; n < N; ++n) {
      if (!kShared) decay[k][n] = exp2_nonpositive(step * a[n]);
      h[k + 1][n] = decay[k][kShared ? 0 : n] * h[k][n] + dx * B[bc + n];
      y += h[k + 1][n] * C[bc + n];
    }
    ys[k] = y;
  }
  for (int k = steps - 1; k >= 0; --k) {
    const int64_t at = (b * s.length + t0 + k) * s.channels + d;
    const int64_t bc = ((b * s.length + t0 + k) * s.groups + group) * N;
    const Vec step = load(dt + at), x = load(u + at), dx = step * x;
    Vec gy = load(grad + at);
    if (z) {
      const Vec g = load(z + at), sg = sigmoid(g);
      store(out.z + at, gy * ys[k] * sg * (1.0f + g * (1.0f - sg)));
      gy *= g * sg;
    }
    Vec through_b{}, through_a{};
    for (int n = 0; n < N; ++n) {
      gC[k * N + n] += gy * h[k + 1][n];
      const Vec g = gh[n] + gy * C[bc + n];
      gB[k * N + n] += g * dx;
      through_b += g * B[bc + n];
      const Vec carried = g * decay[k][kShared ? 0 : n];
      const Vec ga = carried * h[k][n];
      if (kShared) {
        through_a += ga;
      } else {
        through_a += ga * a[n];
        gA[n] += ga * step;
      }
      gh[n] = carried;
    }
    if (kShared) {
      gA[0] += through_a * step;
      through_a *= a[0];
    }
    gD += gy * x;
    store(out.u + at, gy * skip + through_b * step);
    store(out.dt + at, through_a * (1.0f / kLog2e) + through_b * x);
  }
}

template <int kN, bool kShared>
static void backward(const Scan& s, const float* u, const float* dt, const float* A, const float* B,
                     const float* C, const float* D, const float* z, const float* grad,
                     const float* saved, const Grads& out) {
  const int N = kN ? kN : static_cast<int>(s.states), n_decay = kShared ? 1 : N;
  const int64_t blocks = s.channels / kLanes, blocks_per_group = blocks / s.groups;
  std::vector<Vec> a(blocks * n_decay), gh(blocks * N), gA(blocks * n_decay), gD(blocks);
  std::vector<Vec> gB(kChunk * N), gC(kChunk * N);
  for (int64_t k = 0; k < blocks; ++k) load_decay<kShared>(s, A, k * kLanes, &a[k * n_decay]);
  for (int64_t b = 0; b < s.batch; ++b) {
    std::fill(gh.begin(), gh.end(), Vec{});
    for (int64_t chunk = chunks_of(s) - 1; chunk >= 0; --chunk)
      for (int64_t group = 0; group < s.groups; ++group) {
        std::fill(gB.begin(), gB.end(), Vec{});
        std::fill(gC.begin(), gC.end(), Vec{});
        for (int64_t k = group * blocks_per_group; k < (group + 1) * blocks_per_group; ++k)
          backward_chunk<kN, kShared>(
              s, b, k * kLanes, chunk * kChunk, u, dt, B, C, load(D + k * kLanes), z, grad,
              &a[k * n_decay], saved + ((b * chunks_of(s) + chunk) * blocks + k) * N * kLanes, out,
              &gh[k * N], &gA[k * n_decay], gD[k], gB.data(), gC.data());
        for (int64_t k = 0; k < kChunk && chunk * kChunk + k < s.length; ++k)
          for (int n = 0; n < N; ++n) {
            const int64_t to = ((b * s.length + chunk * kChunk + k) * s.groups + group) * N + n;
            out.B[to] = sum_lanes(gB[k * N + n]);
            out.C[to] = sum_lanes(gC[k * N + n]);
          }
      }
  }
  for (int64_t k = 0; k < blocks; ++k) {
    store(out.D + k * kLanes, gD[k]);
    for (int n = 0; n < n_decay; ++n)
      for (int i = 0; i < kLanes; ++i)
        out.A[(k * kLanes + i) * n_decay + n] = gA[k * n_decay + n][i];
  }
}

#define DISPATCH(function, ...)                                             \
  switch (s->states) {                                                      \
    case 16: s->shared_decay ? function<16, true>(__VA_ARGS__)              \
                             : function<16, false>(__VA_ARGS__); break;     \
    case 32: s->shared_decay ? function<32, true>(__VA_ARGS__)              \
                             : function<32, false>(__VA_ARGS__); break;     \
    default: s->shared_decay ? function<0, true>(__VA_ARGS__)               \
                             : function<0, false>(__VA_ARGS__);             \
  }

extern "C" {

int lanes() { return kLanes; }
int chunk() { return kChunk; }
int max_states() { return kMaxStates; }

void scan_forward(const Scan* s, const float* u, const float* dt, const float* A, const float* B,
                  const float* C, const float* D, const float* z, float* out, float* saved) {
  DISPATCH(forward, *s, u, dt, A, B, C, D, z, out, saved)
}

void scan_backward(const Scan* s, const float* u, const float* dt, const float* A, const float* B,
                   const float* C, const float* D, const float* z, const float* grad,
                   const float* saved, float* gu, float* gdt, float* gA, float* gB, float* gC,
                   float* gD, float* gz) {
  const Grads out{gu, gdt, gA, gB, gC, gD, gz};
  DISPATCH(backward, *s, u, dt, A, B, C, D, z, grad, saved, out)
}

// y = silu(bias + sum_k w[k] * x[t - (width - 1) + k]); w is [width, channels].
void conv_forward(int64_t batch, int64_t length, int64_t channels, int64_t width, const float* x,
                  const float* w, const float* bias, float* y) {
  for (int64_t row = 0; row < batch * length; ++row)
    for (int64_t d = 0; d < channels; d += kLanes) {
      const int64_t t = row % length;
      Vec sum = load(bias + d);
      for (int64_t k = std::max<int64_t>(0, width - 1 - t); k < width; ++k)
        sum += load(w + k * channels + d) * load(x + (row - (width - 1) + k) * channels + d);
      store(y + row * channels + d, sum * sigmoid(sum));
    }
}

// Gradients of conv_forward; gx, gw [width, channels] and gbias must arrive as zeros.
void conv_backward(int64_t batch, int64_t length, int64_t channels, int64_t width, const float* x,
                   const float* w, const float* bias, const float* gy, float* gx, float* gw,
                   float* gbias) {
  for (int64_t row = 0; row < batch * length; ++row)
    for (int64_t d = 0; d < channels; d += kLanes) {
      const int64_t first = std::max<int64_t>(0, width - 1 - row % length);
      const int64_t back = (row - (width - 1)) * channels + d;
      Vec sum = load(bias + d);
      for (int64_t k = first; k < width; ++k)
        sum += load(w + k * channels + d) * load(x + back + k * channels);
      const Vec sg = sigmoid(sum);
      const Vec g = load(gy + row * channels + d) * sg * (1.0f + sum * (1.0f - sg));
      store(gbias + d, load(gbias + d) + g);
      for (int64_t k = first; k < width; ++k) {
        float* to = gw + k * channels + d;
        store(to, load(to) + g * load(x + back + k * channels));
        float* from = gx + back + k * channels;
        store(from, load(from) + g * load(w + k * channels + d));
      }
    }
}
}
