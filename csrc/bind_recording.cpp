// Recordings as a Python class. Memory of the tensors that were used while it recorded must stay.
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "recording.h"

namespace sidewinder {

void bind_recording(nanobind::module_& m) {
    namespace nb = nanobind;
    using Release = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Recording>(m, "Recording")
        .def(nb::init<>())
        .def("begin", &Recording::begin)
        .def("end", &Recording::end)
        .def("spoil", &Recording::spoil, nb::arg("why"))
        .def("replay", &Recording::replay, Release())
        .def("__len__", &Recording::size)
        .def_prop_ro("spoiled_by", &Recording::spoiled_by);
}

}  // namespace sidewinder
