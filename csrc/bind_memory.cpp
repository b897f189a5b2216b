// How the process asks the system for memory.
#include <nanobind/nanobind.h>

#include <cstdint>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
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

// Asks for huge pages for the whole ones between `address` and its end, before they are touched.
// A wish: systems without them keep small pages, and nothing else changes.
void prefer_huge_pages(uintptr_t address, uintptr_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kHuge = 2u << 20;
    const uintptr_t begin = (address + kHuge - 1) / kHuge * kHuge;
    const uintptr_t end = (address + bytes) / kHuge * kHuge;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    static_cast<void>(address);
    static_cast<void>(bytes);
#endif
}

}  // namespace

void bind_memory(nanobind::module_& m) {
    m.def("keep_freed_memory", &keep_freed_memory);
    m.def("prefer_huge_pages", &prefer_huge_pages, nanobind::arg("address"),
          nanobind::arg("bytes"));
}

}  // namespace sidewinder
