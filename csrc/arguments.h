// What bindings of kernels share: arguments as rows, and the launch.
#pragma once

#include <stdexcept>
#include <string>

#include "kernels.h"
#include "recording.h"
#include "tensor.h"

namespace sidewinder {

using Handle = nb::handle;

template <class Args>
void launch(void (*kernel)(const Args&), const Args& args) {
    nb::gil_scoped_release release;
    perform([kernel, args] { kernel(args); });
}

inline const View& real(const View& view) { return view.of({Element::f32, Element::bf16}); }

inline Rows real_rows(const View& view, std::initializer_list<int64_t> shape) {
    return real(view.shaped(shape).packed_from(1)).rows();
}

inline Rows optional_rows(const View& view, std::initializer_list<int64_t> shape) {
    return view.present() ? real_rows(view, shape) : view.rows();
}

inline Activation activation_of(int number) {
    if (number < 0 || number >= kActivations) {
        throw std::invalid_argument("activation: 0 to " + std::to_string(kActivations - 1));
    }
    return static_cast<Activation>(number);
}

}  // namespace sidewinder
