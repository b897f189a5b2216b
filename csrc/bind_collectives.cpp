// Shared-memory collectives as a Python class. Tensors come as addresses and sizes of contiguous
// memory that the caller keeps alive; the GIL is released while ranks wait for each other.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings.h"
#include "shm_group.h"

namespace sidewinder {
namespace {

namespace nb = nanobind;
using Release = nb::call_guard<nb::gil_scoped_release>;

char* pointer(uintptr_t address) { return reinterpret_cast<char*>(address); }

SumType sum_type(int code) {
    if (code < 0 || code > 3) throw std::invalid_argument("no such element type of a sum");
    return static_cast<SumType>(code);
}

void make_group(ShmGroup* place, const std::shared_ptr<Segment>& segment, int area,
                const std::vector<int>& members, int index, int spins, int yields,
                double timeout_s) {
    new (place) ShmGroup(segment, area, members, index, Patience{spins, yields, timeout_s});
}

}  // namespace

void bind_collectives(nb::module_& m) {
    m.attr("SHM_AREAS") = kAreas;
    m.def("shm_bytes", &Segment::bytes, nb::arg("ranks"));
    nb::class_<Segment>(m, "ShmSegment")
        .def(nb::init<int, int>(), nb::arg("fd"), nb::arg("ranks"));
    nb::class_<ShmGroup>(m, "ShmGroup")
        .def("__init__", &make_group, Release(), nb::arg("segment"), nb::arg("area"),
             nb::arg("members"), nb::arg("index"), nb::arg("spins"), nb::arg("yields"),
             nb::arg("timeout_s"))
        .def("all_reduce", [](ShmGroup& group, uintptr_t x, int64_t count, int type,
                              int64_t two_shot_bytes) {
            group.all_reduce(pointer(x), count, sum_type(type), two_shot_bytes);
        }, Release(), nb::arg("x"), nb::arg("count"), nb::arg("type"), nb::arg("two_shot_bytes"))
        .def("all_gather", [](ShmGroup& group, uintptr_t x, uintptr_t out, int64_t rows,
                              const std::vector<int64_t>& row_bytes) {
            group.all_gather(pointer(x), pointer(out), rows, row_bytes);
        }, Release(), nb::arg("x"), nb::arg("out"), nb::arg("rows"), nb::arg("row_bytes"))
        .def("broadcast", [](ShmGroup& group, uintptr_t x, int64_t bytes, int root) {
            group.broadcast(pointer(x), bytes, root);
        }, Release(), nb::arg("x"), nb::arg("bytes"), nb::arg("root"))
        .def("barrier", &ShmGroup::barrier, Release())
        .def("bare_exchanges", &ShmGroup::bare_exchanges, Release(), nb::arg("calls"),
             nb::arg("gap_ns"));
}

}  // namespace sidewinder
