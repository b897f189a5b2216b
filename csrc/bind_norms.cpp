// Norms, those of a group that spans ranks among them, and gates as Python functions: as
// bind_kernels.cpp.
#include <stdexcept>

#include "arguments.h"
#include "bindings.h"

namespace sidewinder {
namespace {

Rows float_column(const char* name, Handle tensor, int64_t rows) {
    const View view(name, tensor);
    return view.shaped({rows, 1}).of({Element::f32}).rows();
}

void bind_whole_norms(nb::module_& m) {
    m.def("rms_norm", [](Handle x, Handle weight, float eps, Handle residual, Handle y,
                         Handle sum, Handle beside) {
        const View in("x", x), added("residual", residual), more("beside", beside);
        const int64_t rows = in.shaped({-1, -1}).size(0), width = in.size(1);
        NormArgs args{};
        args.x = real_rows(in, {rows, width});
        args.beside = optional_rows(more, {rows, -1});
        args.beside_width = more.present() ? more.size(1) : 0;
        args.weight = optional_rows(View("weight", weight), {width + args.beside_width});
        args.residual = optional_rows(added, {rows, width});
        args.y = real_rows(View("y", y), {rows, width + args.beside_width});
        if (added.present()) args.sum = real_rows(View("sum", sum), {rows, width});
        args.rows = rows;
        args.width = width;
        args.eps = eps;
        launch(kernels().rms_norm, args);
    }, nb::arg("x"), nb::arg("weight").none(), nb::arg("eps"), nb::arg("residual").none(),
       nb::arg("y"), nb::arg("sum").none(), nb::arg("beside").none() = nb::none());

    m.def("gated_rms_norm", [](Handle x, Handle z, Handle weight, float eps, int64_t group_size,
                               bool norm_before_gate, Handle y) {
        const View in("x", x);
        const int64_t rows = in.shaped({-1, -1}).size(0), width = in.size(1);
        if (group_size < 1 || width % group_size != 0) {
            throw std::invalid_argument("group_size does not divide the width");
        }
        GatedNormArgs args{};
        args.x = real_rows(in, {rows, width});
        args.z = real_rows(View("z", z), {rows, width});
        args.weight = real_rows(View("weight", weight), {width});
        args.y = real_rows(View("y", y), {rows, width});
        args.rows = rows;
        args.width = width;
        args.group_size = group_size;
        args.eps = eps;
        args.norm_before_gate = norm_before_gate;
        launch(kernels().gated_rms_norm, args);
    }, nb::arg("x"), nb::arg("z"), nb::arg("weight"), nb::arg("eps"), nb::arg("group_size"),
       nb::arg("norm_before_gate"), nb::arg("y"));
}

void bind_gated_squares(nb::module_& m) {
    m.def("gated_squares", [](Handle x, Handle z, Handle weight, bool norm_before_gate, Handle u,
                              Handle squares) {
        const View in("x", x);
        const int64_t rows = in.shaped({-1, -1}).size(0), width = in.size(1);
        GatedSquaresArgs args{};
        args.x = real_rows(in, {rows, width});
        args.z = real_rows(View("z", z), {rows, width});
        args.weight = real_rows(View("weight", weight), {width});
        args.u = real_rows(View("u", u), {rows, width});
        args.squares = float_column("squares", squares, rows);
        args.rows = rows;
        args.width = width;
        args.norm_before_gate = norm_before_gate;
        launch(kernels().gated_squares, args);
    }, nb::arg("x"), nb::arg("z"), nb::arg("weight"), nb::arg("norm_before_gate"), nb::arg("u"),
       nb::arg("squares"));
}

void bind_with_scalar(nb::module_& m) {
    m.def("with_scalar", [](Handle partial, Handle squares, float divisor, int64_t rank,
                            int64_t ranks, Handle message) {
        const View in("partial", partial), out("message", message);
        const int64_t rows = in.shaped({-1, -1}).size(0), width = in.size(1);
        if (rank < 0 || rank >= ranks) throw std::invalid_argument("rank is not one of the ranks");
        WithScalarArgs args{};
        args.partial = real_rows(in, {rows, width});
        args.squares = float_column("squares", squares, rows);
        const bool whole = args.partial.dtype == DType::f32;
        args.columns = whole ? 1 : 2 * ranks;
        args.own = whole ? 0 : 2 * rank;
        out.shaped({rows, width + args.columns}).of({whole ? Element::f32 : Element::bf16});
        args.message = out.rows();
        args.rows = rows;
        args.width = width;
        args.divisor = divisor;
        launch(kernels().with_scalar, args);
    }, nb::arg("partial"), nb::arg("squares"), nb::arg("divisor"), nb::arg("rank"),
       nb::arg("ranks"), nb::arg("message"));
}

void bind_scaled_rows(nb::module_& m) {
    m.def("scaled_rows", [](Handle x, Handle mean_squares, float eps, Handle y) {
        const View in("x", x), parts("mean_squares", mean_squares);
        const int64_t rows = in.shaped({-1, -1}).size(0), width = in.size(1);
        ScaledRowsArgs args{};
        args.x = real_rows(in, {rows, width});
        args.mean_squares = real_rows(parts, {rows, -1});
        args.y = real_rows(View("y", y), {rows, width});
        args.rows = rows;
        args.width = width;
        args.parts = parts.size(1);
        args.eps = eps;
        launch(kernels().scaled_rows, args);
    }, nb::arg("x"), nb::arg("mean_squares"), nb::arg("eps"), nb::arg("y"));
}

void bind_add_rows(nb::module_& m) {
    m.def("add_rows", [](Handle x, Handle y, Handle total) {
        const View in("x", x);
        const int64_t rows = in.shaped({-1, -1}).size(0), width = in.size(1);
        AddRowsArgs args{};
        args.x = real_rows(in, {rows, width});
        args.y = real_rows(View("y", y), {rows, width});
        args.total = real_rows(View("total", total), {rows, width});
        args.rows = rows;
        args.width = width;
        launch(kernels().add_rows, args);
    }, nb::arg("x"), nb::arg("y"), nb::arg("total"));
}

void bind_gated_activation(nb::module_& m) {
    m.def("gated_activation", [](Handle gate, Handle up, int activation, Handle y) {
        const View in("gate", gate);
        const int64_t rows = in.shaped({-1, -1}).size(0), width = in.size(1);
        GatedActivationArgs args{};
        args.gate = real_rows(in, {rows, width});
        args.up = real_rows(View("up", up), {rows, width});
        args.y = real_rows(View("y", y), {rows, width});
        args.rows = rows;
        args.width = width;
        args.activation = activation_of(activation);
        launch(kernels().gated_activation, args);
    }, nb::arg("gate"), nb::arg("up"), nb::arg("activation"), nb::arg("y"));
}

}  // namespace

void bind_norms(nb::module_& m) {
    bind_whole_norms(m);
    bind_gated_squares(m);
    bind_with_scalar(m);
    bind_scaled_rows(m);
    bind_add_rows(m);
    bind_gated_activation(m);
}

}  // namespace sidewinder
