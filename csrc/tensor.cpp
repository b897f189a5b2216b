#include "tensor.h"

#include <stdexcept>

namespace sidewinder {
namespace {

// The exchange table of DLPack 1.3: version, older table, then these functions in this order.
struct ExchangeTable {
    uint32_t major, minor;
    void* older;
    void* allocate;
    void* to_managed;
    void* from_managed;
    int (*borrow)(void* object, DLTensor* out);
    void* current_stream;
};

PyTypeObject* tensor_type = nullptr;
const ExchangeTable* exchange_table = nullptr;

constexpr int kCpu = 1;  // DLPack's device type

const char* element_name(Element e) {
    switch (e) {
        case Element::f32: return "float32";
        case Element::bf16: return "bfloat16";
        case Element::i8: return "int8";
        case Element::u8: return "uint8";
        case Element::i32: return "int32";
        case Element::i64: return "int64";
        default: return "bool";
    }
}

}  // namespace

void set_tensor_type(nb::object type, nb::capsule exchange) {
    const auto* table = static_cast<const ExchangeTable*>(exchange.data());
    if (table->major != 1 || table->borrow == nullptr) {
        throw std::invalid_argument("this torch has no DLPack 1.x exchange table");
    }
    exchange_table = table;
    // Kept for the life of the process.
    tensor_type = reinterpret_cast<PyTypeObject*>(type.release().ptr());
}

View::View(const char* name, nb::handle tensor) : name_(name) {
    if (tensor.is_none()) return;
    if (tensor_type == nullptr || !PyObject_TypeCheck(tensor.ptr(), tensor_type)) {
        fail("is not a tensor");
    }
    if (exchange_table->borrow(tensor.ptr(), &tensor_) != 0) throw nb::python_error();
    if (tensor_.device_type != kCpu) fail("is not on the CPU");
    present_ = true;
}

void View::fail(const std::string& what) const {
    throw std::invalid_argument(std::string(name_) + " " + what);
}

const View& View::shaped(std::initializer_list<int64_t> shape) const {
    if (!present_) fail("is missing");
    bool same = tensor_.ndim == static_cast<int32_t>(shape.size());
    std::string wanted, got;
    int dim = 0;
    for (int64_t size : shape) {
        same = same && (size < 0 || tensor_.shape[dim] == size);
        wanted += (size < 0 ? std::string("*") : std::to_string(size)) + " ";
        ++dim;
    }
    if (!same) {
        for (int i = 0; i < tensor_.ndim; ++i) got += std::to_string(tensor_.shape[i]) + " ";
        fail("has shape [ " + got + "], not [ " + wanted + "]");
    }
    const int last = tensor_.ndim - 1;
    if (tensor_.shape[last] > 1 && tensor_.strides[last] != 1) fail("is not contiguous in a row");
    return *this;
}

const View& View::packed_from(int dim) const {
    int64_t expected = 1;
    for (int i = tensor_.ndim - 1; i >= dim; --i) {
        if (tensor_.shape[i] > 1 && tensor_.strides[i] != expected) fail("is not contiguous");
        expected *= tensor_.shape[i];
    }
    return *this;
}

Element View::element() const {
    if (tensor_.lanes == 1) {
        if (tensor_.code == 2 && tensor_.bits == 32) return Element::f32;
        if (tensor_.code == 4 && tensor_.bits == 16) return Element::bf16;
        if (tensor_.code == 0 && tensor_.bits == 8) return Element::i8;
        if (tensor_.code == 1 && tensor_.bits == 8) return Element::u8;
        if (tensor_.code == 0 && tensor_.bits == 32) return Element::i32;
        if (tensor_.code == 0 && tensor_.bits == 64) return Element::i64;
        if (tensor_.code == 6 && tensor_.bits == 8) return Element::boolean;
    }
    fail("has an element type that no kernel takes");
}

const View& View::of(std::initializer_list<Element> allowed) const {
    const Element mine = element();
    std::string names;
    for (Element e : allowed) {
        if (e == mine) return *this;
        names += (names.empty() ? "" : " or ") + std::string(element_name(e));
    }
    fail("is " + std::string(element_name(mine)) + ", not " + names);
}

DType View::dtype() const {
    const Element mine = element();
    return mine == Element::f32 ? DType::f32 : mine == Element::bf16 ? DType::bf16 : DType::i8;
}

Rows View::rows() const {
    if (!present_) return Rows{nullptr, 0, DType::f32};
    return Rows{pointer(), tensor_.ndim > 1 ? tensor_.strides[0] : 0, dtype()};
}

}  // namespace sidewinder
