// Groups of bindings that make up the module `sidewinder._native`.
#pragma once

#include <nanobind/nanobind.h>

namespace sidewinder {}  // namespace sidewinder
