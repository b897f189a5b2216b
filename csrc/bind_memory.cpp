// How the process asks the system for memory.
#include <nanobind/nanobind.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "bindings.h"

namespace sidewinder {
namespace {

// Activations of a step are freed and asked for again by the next one. Blocks of their size go back
// to the system by default, and every page of the next one is a fault: a tenth of a prefill's time.
void keep_freed_memory() {
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

}  // namespace

void bind_memory(nanobind::module_& m) {
    m.def("keep_freed_memory", &keep_freed_memory);
}

}  // namespace sidewinder
