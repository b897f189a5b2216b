// Threads of this process, and scratch memory of each.
//
// Work is divided statically into contiguous ranges; kernels compute every output in one range, so
// that results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sidewinder {

// Number of threads that kernels use, the caller's included; at least 1.
void set_threads(int n);
int threads();

// Call body(context, begin, end) on ranges that cover [0, n), at least `grain` long, on several
// threads. If another thread is inside a parallel region, the caller does all the work itself.
void parallel_ranges(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);

template <class Body>
inline void parallel(int64_t n, int64_t grain, const Body& body) {
    auto call = [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
    };
    parallel_ranges(n, grain, call, const_cast<Body*>(&body));
}

// Memory of the calling thread, 64-byte aligned, kept between calls; contents are arbitrary. Each
// purpose has its own, so that a caller and the range it runs itself do not collide, nor experts and
// the linear maps that they call.
enum class Scratch : int { call = 0, range = 1, experts = 2 };
void* scratch(Scratch purpose, size_t bytes);

}  // namespace sidewinder
