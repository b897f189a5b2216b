// Codecs as Python functions. Tensors come as addresses and sizes of memory that the caller keeps
// alive and has checked (src/sidewinder/ops/codec/native.py).
#include <nanobind/stl/tuple.h>

#include <stdexcept>

#include "bindings.h"
#include "kernels.h"
#include "recording.h"

namespace sidewinder {
namespace {

namespace nb = nanobind;
using Release = nb::call_guard<nb::gil_scoped_release>;

uint8_t* pointer(uintptr_t address) { return reinterpret_cast<uint8_t*>(address); }

int checked(int bits) {
    cannot_record("codecs");
    if (bits != 16 && bits != 8 && bits != 6 && bits != 4) {
        throw std::invalid_argument("bits: 16, 8, 6 or 4");
    }
    return bits;
}

// Rows of float32 or bfloat16.
Rows real_rows(uintptr_t data, int64_t stride, bool is_bf16) {
    return {pointer(data), stride, is_bf16 ? DType::bf16 : DType::f32};
}

// The shape of a tensor's messages, whose stripes must be `stripe_bytes` long.
CodecShape shape_of(int64_t rows, int64_t width, int64_t stripes, int64_t stripe_bytes, int bits) {
    if (rows < 1 || width < 1 || stripes < 1) throw std::invalid_argument("nothing to encode");
    const int64_t groups = rows * codec_row_groups(checked(bits), width);
    const int64_t stripe_groups = (groups + stripes - 1) / stripes;
    if (stripe_bytes != stripe_groups * codec_bytes(bits)) {
        throw std::invalid_argument("messages have another size than the tensor needs");
    }
    return {rows, width, stripes, stripe_groups, bits};
}

void encode(uintptr_t x, int64_t stride, bool is_bf16, int64_t rows, int64_t width, uintptr_t out,
            int64_t stripes, int64_t stripe_bytes, int bits) {
    const Rows in = real_rows(x, stride, is_bf16);
    kernels().codec_encode(
        {&in, pointer(out), shape_of(rows, width, stripes, stripe_bytes, bits)});
}

void reduce(uintptr_t parts, int64_t ranks, int64_t bytes, uintptr_t out, int bits) {
    if (ranks < 1 || bytes < 1 || bytes % codec_bytes(checked(bits)) != 0) {
        throw std::invalid_argument("parts are not whole groups of one rank or more");
    }
    kernels().codec_reduce({pointer(parts), pointer(out), ranks, bytes / codec_bytes(bits), bits});
}

void decode(uintptr_t parts, int64_t ranks, int64_t stripes, int64_t stripe_bytes, uintptr_t out,
            int64_t stride, bool is_bf16, int64_t rows, int64_t width, int bits) {
    if (ranks < 1) throw std::invalid_argument("messages of one rank or more are needed");
    const Rows target = real_rows(out, stride, is_bf16);
    kernels().codec_decode({pointer(parts), &target, ranks,
                            shape_of(rows, width, stripes, stripe_bytes, bits)});
}

// Address, row stride and whether the elements are bfloat16; address 0 for none.
using RowsOf = std::tuple<uintptr_t, int64_t, bool>;

Rows rows_of(const RowsOf& rows) {
    return real_rows(std::get<0>(rows), std::get<1>(rows), std::get<2>(rows));
}

void decode_norm(uintptr_t parts, int64_t ranks, int64_t stripes, int64_t stripe_bytes,
                 bool is_bf16, int64_t height, int64_t width, int bits, const RowsOf& weight,
                 float eps, const RowsOf& residual, const RowsOf& y, const RowsOf& sum) {
    if (ranks < 1) throw std::invalid_argument("messages of one rank or more are needed");
    const NormArgs norm{Rows{},       rows_of(weight), rows_of(residual), rows_of(y),
                        rows_of(sum), height,          width,             eps};
    kernels().codec_decode_norm({pointer(parts), ranks,
                                 shape_of(height, width, stripes, stripe_bytes, bits), is_bf16,
                                 &norm});
}

}  // namespace

void bind_codec(nb::module_& m) {
    m.def("codec_encode", &encode, Release(), nb::arg("x"), nb::arg("stride"), nb::arg("is_bf16"),
          nb::arg("rows"), nb::arg("width"), nb::arg("out"), nb::arg("stripes"),
          nb::arg("stripe_bytes"), nb::arg("bits"));
    m.def("codec_reduce", &reduce, Release(), nb::arg("parts"), nb::arg("ranks"), nb::arg("bytes"),
          nb::arg("out"), nb::arg("bits"));
    m.def("codec_decode", &decode, Release(), nb::arg("parts"), nb::arg("ranks"),
          nb::arg("stripes"), nb::arg("stripe_bytes"), nb::arg("out"), nb::arg("stride"),
          nb::arg("is_bf16"), nb::arg("rows"), nb::arg("width"), nb::arg("bits"));
    m.def("codec_decode_norm", &decode_norm, Release(), nb::arg("parts"), nb::arg("ranks"),
          nb::arg("stripes"), nb::arg("stripe_bytes"), nb::arg("is_bf16"), nb::arg("rows"),
          nb::arg("width"), nb::arg("bits"), nb::arg("weight"), nb::arg("eps"), nb::arg("residual"),
          nb::arg("y"), nb::arg("sum"));
}

}  // namespace sidewinder
