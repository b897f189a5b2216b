// Tensors of the Python side, seen through DLPack's C exchange table (about 50 ns a tensor, and no
// dependence on torch's C++ ABI). A view is valid while the call that received the tensor runs.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

#include "kernels.h"

namespace sidewinder {

namespace nb = nanobind;

// Layout of DLPack 1.x (dmlc.github.io/dlpack): only what is read here.
struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};

// Learn the tensor type and its exchange table; called once from Python.
void set_tensor_type(nb::object type, nb::capsule exchange);

enum class Element { f32, bf16, i8, u8, i32, i64, boolean };

// A tensor with checks: every requirement names the argument when it fails (ValueError).
class View {
   public:
    View(const char* name, nb::handle tensor);  // None gives an absent view

    bool present() const { return tensor_.data != nullptr || present_; }
    int64_t size(int dim) const { return tensor_.shape[dim]; }
    int64_t stride(int dim) const { return tensor_.strides[dim]; }

    // Requires this shape (-1: any size) and a contiguous last dimension.
    const View& shaped(std::initializer_list<int64_t> shape) const;
    // Requires that dimensions from `dim` on are contiguous as one.
    const View& packed_from(int dim) const;
    const View& of(std::initializer_list<Element> allowed) const;

    template <class T>
    T* data() const {
        return static_cast<T*>(pointer());
    }
    DType dtype() const;
    Rows rows() const;  // dimension 0 by stride, the others packed; a vector is one row

   private:
    [[noreturn]] void fail(const std::string& what) const;
    void* pointer() const { return static_cast<char*>(tensor_.data) + tensor_.byte_offset; }
    Element element() const;

    const char* name_;
    DLTensor tensor_{};
    bool present_ = false;
};

}  // namespace sidewinder
