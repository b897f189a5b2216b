// Collectives as Python classes: over shared memory, and over TCP. Tensors come as addresses and sizes of contiguous
// memory that the caller keeps alive; the GIL is released while ranks wait for each other.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings.h"
#include "kernels.h"
#include "recording.h"
#include "shm_group.h"
#include "tcp_group.h"

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

// The sum of several tensors in rank order; the output may be one of them.
void rank_sum(const std::vector<uintptr_t>& parts, uintptr_t out, int64_t count, int type) {
    cannot_record("rank_sum");
    if (parts.empty() || parts.size() > static_cast<size_t>(kMostRanks)) {
        throw std::invalid_argument("too few or too many parts of a sum");
    }
    const void* places[kMostRanks];
    for (size_t r = 0; r < parts.size(); ++r) places[r] = pointer(parts[r]);
    kernels().rank_sum({places, static_cast<int>(parts.size()), pointer(out), count,
                        static_cast<int>(sum_type(type))});
}

// Addresses and bytes of one message for every rank.
std::vector<Message> messages(const std::vector<uintptr_t>& data, const std::vector<int64_t>& bytes) {
    if (data.size() != bytes.size()) throw std::invalid_argument("every message has a length");
    std::vector<Message> all;
    for (size_t r = 0; r < data.size(); ++r) all.push_back({pointer(data[r]), bytes[r]});
    return all;
}

void bind_tcp(nb::module_& m) {
    nb::class_<TcpGroup>(m, "TcpGroup")
        .def(nb::init<std::vector<int>, int, double, int>(), nb::arg("sockets"), nb::arg("index"),
             nb::arg("timeout_s"), nb::arg("spin_us"))
        .def("post", [](TcpGroup& group, const std::vector<uintptr_t>& out,
                        const std::vector<int64_t>& out_bytes, const std::vector<uintptr_t>& in,
                        const std::vector<int64_t>& in_bytes) {
            cannot_record("messages over TCP");
            return group.post(messages(out, out_bytes), messages(in, in_bytes));
        }, Release(), nb::arg("out"), nb::arg("out_bytes"), nb::arg("in_"), nb::arg("in_bytes"))
        .def("wait", &TcpGroup::wait, Release(), nb::arg("ticket"))
        .def("close", &TcpGroup::close, Release())
        .def_prop_ro("bytes_sent", &TcpGroup::bytes_sent);
}

}  // namespace

void bind_collectives(nb::module_& m) {
    m.attr("SHM_AREAS") = kAreas;
    m.attr("SHM_SLOT_BYTES") = kSlotBytes;
    m.def("rank_sum", &rank_sum, Release(), nb::arg("parts"), nb::arg("out"), nb::arg("count"),
          nb::arg("type"));
    bind_tcp(m);
    m.def("shm_bytes", &Segment::bytes, nb::arg("ranks"));
    nb::class_<Segment>(m, "ShmSegment")
        .def(nb::init<int, int>(), nb::arg("fd"), nb::arg("ranks"));
    nb::class_<ShmGroup>(m, "ShmGroup")
        .def("__init__", &make_group, Release(), nb::arg("segment"), nb::arg("area"),
             nb::arg("members"), nb::arg("index"), nb::arg("spins"), nb::arg("yields"),
             nb::arg("timeout_s"))
        .def("all_reduce", [](ShmGroup& group, uintptr_t x, int64_t count, int type,
                              int64_t two_shot_bytes) {
            perform([&group, x = pointer(x), count, type = sum_type(type), two_shot_bytes] {
                group.all_reduce(x, count, type, two_shot_bytes);
            });
        }, Release(), nb::arg("x"), nb::arg("count"), nb::arg("type"), nb::arg("two_shot_bytes"))
        .def("all_gather", [](ShmGroup& group, uintptr_t x, uintptr_t out, int64_t rows,
                              const std::vector<int64_t>& row_bytes) {
            cannot_record("all_gather over shared memory");
            group.all_gather(pointer(x), pointer(out), rows, row_bytes);
        }, Release(), nb::arg("x"), nb::arg("out"), nb::arg("rows"), nb::arg("row_bytes"))
        .def("all_to_all", [](ShmGroup& group, uintptr_t x, uintptr_t out, int64_t row_bytes) {
            cannot_record("all_to_all over shared memory");
            group.all_to_all(pointer(x), pointer(out), row_bytes);
        }, Release(), nb::arg("x"), nb::arg("out"), nb::arg("row_bytes"))
        .def("post", [](ShmGroup& group, uintptr_t x, int64_t bytes) {
            cannot_record("post over shared memory");
            return group.post(pointer(x), bytes);
        }, Release(), nb::arg("x"), nb::arg("bytes"))
        .def_prop_ro("can_post", &ShmGroup::can_post)
        .def("collect_sum", [](ShmGroup& group, int slot, uintptr_t x, int64_t count, int type) {
            cannot_record("collect_sum over shared memory");
            group.collect_sum(slot, pointer(x), count, sum_type(type));
        }, Release(), nb::arg("slot"), nb::arg("x"), nb::arg("count"), nb::arg("type"))
        .def("collect", [](ShmGroup& group, int slot, uintptr_t out, int64_t offset,
                           int64_t bytes) {
            cannot_record("collect over shared memory");
            group.collect(slot, pointer(out), offset, bytes);
        }, Release(), nb::arg("slot"), nb::arg("out"), nb::arg("offset"), nb::arg("bytes"))
        .def("broadcast", [](ShmGroup& group, uintptr_t x, int64_t bytes, int root) {
            cannot_record("broadcast over shared memory");
            group.broadcast(pointer(x), bytes, root);
        }, Release(), nb::arg("x"), nb::arg("bytes"), nb::arg("root"))
        .def("barrier", [](ShmGroup& group) {
            cannot_record("barrier over shared memory");
            group.barrier();
        }, Release())
        .def("bare_exchanges", &ShmGroup::bare_exchanges, Release(), nb::arg("calls"),
             nb::arg("gap_ns"));
}

}  // namespace sidewinder
