// Linear maps, routers and experts as Python functions: as bind_kernels.cpp.
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <vector>

#include "arguments.h"
#include "bindings.h"

namespace sidewinder {
namespace {

// What integer weights share scales by: groups of so many inputs, `bits` each.
struct Grouping {
    int64_t size, bits;

    void check() const {
        if (size != 32 && size != 64 && size != 128) {
            throw std::invalid_argument("group_size: 32, 64 or 128");
        }
        if (bits != 8 && bits != 4) throw std::invalid_argument("bits: 8 or 4");
    }
    int64_t groups(int64_t inputs) const { return (inputs + size - 1) / size; }
};

// A matrix [outputs, inputs] with its scales, absent unless it is int8, or int4 (whose rows are whole
// blocks of 32 inputs in 16 bytes, linear_integer.h).
LinearArgs plain(const View& matrix, const View& scales, int64_t inputs, Grouping grouping) {
    const bool is_int4 = scales.present() && grouping.bits == 4;
    LinearArgs args{};
    args.outputs = matrix.shaped({-1, is_int4 ? (inputs + 31) / 32 * 16 : inputs}).size(0);
    args.inputs = inputs;
    args.group_size = grouping.size;
    args.bits = grouping.bits;
    if (is_int4) {
        matrix.of({Element::u8});
    } else {
        matrix.of({Element::f32, Element::bf16, Element::i8});
    }
    args.weight = matrix.rows();
    if (args.weight.dtype == DType::i8) {
        grouping.check();
        args.scales = scales.shaped({args.outputs, grouping.groups(inputs)}).of({Element::bf16}).rows();
    }
    return args;
}

// The same in panels: int32 [panels, units, kPanel]; a unit's lane is 2 bfloat16, 4 int8 plus 128, or
// 8 int4 plus 8: input k in the lower half of byte k, input 4 + k in the upper one.
LinearArgs packed(const View& matrix, const View& scales, int64_t outputs, int64_t inputs,
                  Grouping grouping) {
    if (scales.present()) grouping.check();
    const int64_t bits = scales.present() ? grouping.bits : 16;
    if ((kernels().packed_bits & bits) == 0) {
        throw std::invalid_argument(std::string(kernels().isa) + " has no packed weights of " +
                                    std::to_string(bits) + " bits");
    }
    const int64_t panels = (outputs + kPanel - 1) / kPanel;
    const int64_t each = 32 / bits;
    const View& panel = matrix.shaped({panels, (inputs + each - 1) / each, kPanel});
    LinearArgs args{};
    args.outputs = outputs;
    args.inputs = inputs;
    args.group_size = grouping.size;
    args.bits = grouping.bits;
    args.weight = panel.of({Element::i32}).packed_from(1).rows();
    if (scales.present()) {
        const int64_t groups = grouping.groups(inputs);
        args.scales =
            scales.shaped({panels, groups, kPanel}).of({Element::bf16}).packed_from(1).rows();
    }
    return args;
}

void bind_linear(nb::module_& m) {
    m.def("linear", [](Handle x, Handle weight, Handle scales, Handle bias, Handle y,
                       int64_t group_size, int64_t bits) {
        const View in("x", x);
        const int64_t rows = in.shaped({-1, -1}).size(0), inputs = in.size(1);
        LinearArgs args =
            plain(View("weight", weight), View("scales", scales), inputs, {group_size, bits});
        args.x = real_rows(in, {rows, inputs});
        args.bias = optional_rows(View("bias", bias), {args.outputs});
        args.y = real_rows(View("y", y), {rows, args.outputs});
        args.rows = rows;
        launch(kernels().linear, args);
    }, nb::arg("x"), nb::arg("weight"), nb::arg("scales").none(), nb::arg("bias").none(),
       nb::arg("y"), nb::arg("group_size") = 32, nb::arg("bits") = 8);

    m.def("linear_packed", [](Handle x, Handle weight, Handle scales, Handle bias, Handle y,
                              int64_t group_size, int64_t bits) {
        const View in("x", x), factors("scales", scales), out("y", y);
        const int64_t rows = in.shaped({-1, -1}).size(0), inputs = in.size(1);
        const int64_t outputs = real(out.shaped({rows, -1})).size(1);
        LinearArgs args =
            packed(View("weight", weight), factors, outputs, inputs, {group_size, bits});
        if (!factors.present()) in.of({Element::bf16});
        args.x = real_rows(in, {rows, inputs});
        args.bias = optional_rows(View("bias", bias), {outputs});
        args.y = real_rows(out, {rows, outputs});
        args.rows = rows;
        launch(kernels().linear_packed, args);
    }, nb::arg("x"), nb::arg("weight"), nb::arg("scales").none(), nb::arg("bias").none(),
       nb::arg("y"), nb::arg("group_size") = 32, nb::arg("bits") = 8);
    m.def("round_int4", [](Handle x, int64_t group_size, Handle integers, Handle scales) {
        const View in("x", x), out("integers", integers), factors("scales", scales);
        const Grouping grouping{group_size, 4};
        grouping.check();
        const int64_t rows = in.shaped({-1, -1}).size(0), groups = grouping.groups(in.size(1));
        RoundArgs args{};
        args.x = real(in).rows();
        args.integers = out.shaped({rows, groups * group_size}).of({Element::i8}).rows();
        args.scales = factors.shaped({rows, groups}).of({Element::bf16}).rows();
        args.rows = rows;
        args.inputs = in.size(1);
        args.group_size = group_size;
        launch(kernels().round_int4, args);
    }, nb::arg("x"), nb::arg("group_size"), nb::arg("integers"), nb::arg("scales"));
    m.def("has_packed", [](int bits) { return (kernels().packed_bits & bits) != 0; },
          nb::arg("bits"));
}

// The matrices of a layer's experts, read once: a step has hundreds of them. Keeps the tensors alive.
class ExpertSet {
   public:
    // `gate` (None: there is none), `up`, `down`: (weight, scales or None, group_size, bits) of
    // every expert, all packed or none.
    ExpertSet(nb::object gate, nb::list up, nb::list down, int64_t width, int64_t inner,
              bool is_packed)
        : width(width), inner(inner), is_packed(is_packed), tensors_(nb::make_tuple(gate, up, down)) {
        if (!gate.is_none()) this->gate = matrices(nb::cast<nb::list>(gate), inner, width);
        this->up = matrices(up, inner, width);
        this->down = matrices(down, width, inner);
        if (this->down.size() != count() || (!gate.is_none() && this->gate.size() != count())) {
            throw std::invalid_argument("gate, up and down are of different numbers of experts");
        }
    }

    size_t count() const { return up.size(); }

    std::vector<LinearArgs> gate, up, down;
    const int64_t width, inner;
    const bool is_packed;
    bool widens = false;  // Some are integers, or float32, so any x will do.

   private:
    std::vector<LinearArgs> matrices(const nb::list& parts, int64_t outputs, int64_t inputs) {
        std::vector<LinearArgs> found;
        for (nb::handle part : parts) {
            const auto each = nb::cast<nb::tuple>(part);
            const nb::object weight = each[0], scales = each[1];
            const View matrix("weight", weight), factors("scales", scales);
            const Grouping grouping{nb::cast<int64_t>(each[2]), nb::cast<int64_t>(each[3])};
            found.push_back(is_packed ? packed(matrix, factors, outputs, inputs, grouping)
                                      : plain(matrix, factors, inputs, grouping));
            if (found.back().outputs != outputs) throw std::invalid_argument("weight: outputs");
            widens = !is_packed || factors.present();
        }
        return found;
    }

    nb::tuple tensors_;
};

// int32 and float32 [rows, n_chosen].
void check_pairs(const View& chosen, const View& shares, int64_t rows) {
    chosen.shaped({rows, -1}).packed_from(0).of({Element::i32});
    shares.shaped({rows, chosen.size(1)}).packed_from(0).of({Element::f32});
}

void bind_experts(nb::module_& m) {
    m.def("route", [](Handle x, Handle weight, Handle bias, bool softmax, bool normalised,
                      float scale, float least_sum, int64_t groups, int64_t groups_chosen,
                      Handle chosen, Handle shares) {
        const View in("x", x), matrix("weight", weight), added("bias", bias);
        const View best("chosen", chosen), parts("shares", shares);
        RouteArgs args{};
        args.rows = in.shaped({-1, -1}).size(0);
        args.width = in.size(1);
        args.experts = matrix.shaped({-1, args.width}).of({Element::f32}).size(0);
        check_pairs(best, parts, args.rows);
        args.n_chosen = best.size(1);
        const bool fits = groups >= 1 && args.experts % groups == 0 && groups_chosen >= 1 &&
                          groups_chosen <= groups &&
                          args.n_chosen <= args.experts / groups * groups_chosen;
        if (!fits) throw std::invalid_argument("chosen: more than the experts, or broken groups");
        args.x = real_rows(in, {args.rows, args.width});
        args.weight = matrix.rows();
        if (added.present()) {
            args.bias = added.shaped({args.experts}).of({Element::f32}).data<float>();
        }
        args.chosen = best.data<int32_t>();
        args.shares = parts.data<float>();
        args.groups = groups;
        args.groups_chosen = groups_chosen;
        args.softmax = softmax;
        args.normalised = normalised;
        args.scale = scale;
        args.least_sum = least_sum;
        launch(kernels().route, args);
    }, nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("softmax"),
       nb::arg("normalised"), nb::arg("scale"), nb::arg("least_sum"), nb::arg("groups"),
       nb::arg("groups_chosen"), nb::arg("chosen"), nb::arg("shares"));

    nb::class_<ExpertSet>(m, "ExpertSet")
        .def(nb::init<nb::object, nb::list, nb::list, int64_t, int64_t, bool>(),
             nb::arg("gate").none(), nb::arg("up"), nb::arg("down"), nb::arg("width"),
             nb::arg("inner"), nb::arg("packed"));

    m.def("experts", [](Handle x, const ExpertSet& set, Handle chosen, Handle shares,
                        int activation, Handle y) {
        const View in("x", x), best("chosen", chosen), parts("shares", shares);
        ExpertArgs args{};
        args.rows = in.shaped({-1, set.width}).size(0);
        if (!set.widens) in.of({Element::bf16});
        check_pairs(best, parts, args.rows);
        args.x = real_rows(in, {args.rows, set.width});
        args.y = real_rows(View("y", y), {args.rows, set.width});
        args.chosen = best.data<int32_t>();
        args.shares = parts.data<float>();
        args.gate = set.gate.empty() ? nullptr : set.gate.data();
        args.up = set.up.data();
        args.down = set.down.data();
        args.multiply = set.is_packed ? kernels().linear_packed : kernels().linear;
        if (args.multiply == nullptr) {
            throw std::invalid_argument(std::string(kernels().isa) + " has no packed weights");
        }
        args.width = set.width;
        args.inner = set.inner;
        args.experts = static_cast<int64_t>(set.count());
        args.n_chosen = best.size(1);
        args.activation = activation_of(activation);
        launch(kernels().experts, args);
    }, nb::arg("x"), nb::arg("matrices"), nb::arg("chosen"), nb::arg("shares"),
       nb::arg("activation"), nb::arg("y"));
}

}  // namespace

void bind_linear_maps(nb::module_& m) {
    bind_linear(m);
    bind_experts(m);
}

}  // namespace sidewinder
