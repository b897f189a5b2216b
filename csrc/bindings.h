// Groups of bindings that make up the module `sidewinder._native`.
#pragma once

#include <nanobind/nanobind.h>

namespace sidewinder {

void bind_kernels(nanobind::module_& m);
void bind_linear_maps(nanobind::module_& m);
void bind_norms(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_collectives(nanobind::module_& m);
void bind_codec(nanobind::module_& m);
void bind_memory(nanobind::module_& m);
void bind_recording(nanobind::module_& m);

}  // namespace sidewinder
