// Kernels as Python functions. Outputs are allocated by the caller; arguments are checked here, so
// that a wrong one raises ValueError instead of corrupting memory.
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <stdexcept>

#include "arguments.h"
#include "bindings.h"
#include "thread_pool.h"

namespace sidewinder {
namespace {

// Boundaries, slots, sources and freshness, which must fit `tokens` rows and `n_slots` slots.
Sequences sequences(Handle cu_seqlens, Handle slots, Handle sources, Handle fresh, int64_t tokens,
                    int64_t n_slots) {
    const View bounds("cu_seqlens", cu_seqlens), places("slots", slots), flags("fresh", fresh);
    const View origins("sources", sources);
    const int64_t count = bounds.shaped({-1}).of({Element::i32}).size(0) - 1;
    places.shaped({count}).of({Element::i64});
    origins.shaped({count}).of({Element::i64});
    flags.shaped({count}).of({Element::boolean});
    const Sequences seqs{bounds.data<int32_t>(), places.data<int64_t>(), origins.data<int64_t>(),
                         flags.data<bool>(), count};
    bool good = count >= 0 && seqs.bounds[0] == 0 && seqs.bounds[count] == tokens;
    for (int64_t s = 0; good && s < count; ++s) {
        good = seqs.bounds[s] <= seqs.bounds[s + 1] && 0 <= seqs.slots[s] &&
               seqs.slots[s] < n_slots && 0 <= seqs.sources[s] && seqs.sources[s] < n_slots;
    }
    if (!good) throw std::invalid_argument("sequences do not fit the tokens or the state's slots");
    return seqs;
}

void bind_conv(nb::module_& m) {
    m.def("causal_conv1d", [](Handle x, Handle weight, Handle bias, Handle state, Handle cu_seqlens,
                              Handle slots, Handle sources, Handle fresh, bool activation,
                              Handle y) {
        const View in("x", x), taps("weight", weight), history("state", state);
        const int64_t tokens = in.shaped({-1, -1}).size(0), channels = in.size(1);
        const int64_t n_taps = taps.shaped({-1, channels}).size(0);
        if (n_taps < 1 || n_taps > 16) throw std::invalid_argument("weight: 1 to 16 taps");
        real(history.shaped({-1, n_taps - 1, channels}));
        ConvArgs args{};
        args.x = real_rows(in, {tokens, channels});
        args.weight = real_rows(taps, {n_taps, channels});
        args.bias = optional_rows(View("bias", bias), {channels});
        args.y = real_rows(View("y", y), {tokens, channels});
        args.state = {history.data<void>(), history.stride(0), history.stride(1), history.dtype()};
        args.seqs = sequences(cu_seqlens, slots, sources, fresh, tokens, history.size(0));
        args.channels = channels;
        args.taps = n_taps;
        args.activation = activation;
        launch(kernels().causal_conv1d, args);
    }, nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("state"),
       nb::arg("cu_seqlens"), nb::arg("slots"), nb::arg("sources"), nb::arg("fresh"),
       nb::arg("activation"), nb::arg("y"));
}

void bind_selective_scan(nb::module_& m) {
    m.def("selective_scan", [](Handle x, Handle dt, Handle A, Handle B, Handle C, Handle D,
                               Handle z, Handle dt_bias, Handle state, Handle cu_seqlens,
                               Handle slots, Handle sources, Handle fresh, Handle y) {
        const View in("x", x), rates("A", A), h("state", state);
        const int64_t tokens = in.shaped({-1, -1}).size(0), channels = in.size(1);
        const int64_t d_state = rates.shaped({-1, channels}).size(0);
        real(h.shaped({-1, d_state, channels}));
        ScanArgs args{};
        args.x = real_rows(in, {tokens, channels});
        args.dt = real_rows(View("dt", dt), {tokens, channels});
        args.A = real_rows(rates, {d_state, channels});
        args.B = real_rows(View("B", B), {tokens, d_state});
        args.C = real_rows(View("C", C), {tokens, d_state});
        args.D = real_rows(View("D", D), {channels});
        args.z = optional_rows(View("z", z), {tokens, channels});
        args.dt_bias = optional_rows(View("dt_bias", dt_bias), {channels});
        args.y = real_rows(View("y", y), {tokens, channels});
        args.state = {h.data<void>(), h.stride(0), h.stride(1), h.dtype()};
        args.seqs = sequences(cu_seqlens, slots, sources, fresh, tokens, h.size(0));
        args.channels = channels;
        args.d_state = d_state;
        launch(kernels().selective_scan, args);
    }, nb::arg("x"), nb::arg("dt"), nb::arg("A"), nb::arg("B"), nb::arg("C"), nb::arg("D"),
       nb::arg("z").none(), nb::arg("dt_bias").none(), nb::arg("state"), nb::arg("cu_seqlens"),
       nb::arg("slots"), nb::arg("sources"), nb::arg("fresh"), nb::arg("y"));
}

// Each head's index into the groups of B and C.
const int64_t* head_groups(const View& index, int64_t heads, int64_t groups) {
    const int64_t* values = index.shaped({heads}).of({Element::i64}).data<int64_t>();
    for (int64_t h = 0; h < heads; ++h) {
        if (values[h] < 0 || values[h] >= groups) {
            throw std::invalid_argument("head_group names a group that B does not have");
        }
    }
    return values;
}

Rows float_vector(const char* name, Handle tensor, int64_t size) {
    const View view(name, tensor);
    return view.shaped({size}).of({Element::f32}).rows();
}

void bind_ssd(nb::module_& m) {
    m.def("ssd_scan", [](Handle x, Handle dt, Handle A, Handle B, Handle C, Handle D,
                         Handle dt_bias, Handle state, Handle cu_seqlens, Handle slots,
                         Handle sources, Handle fresh, float dt_min, float dt_max,
                         Handle head_group, Handle y) {
        const View in("x", x), projection("B", B), h("state", state);
        const int64_t tokens = in.shaped({-1, -1, -1}).size(0);
        const int64_t heads = in.size(1), head_dim = in.size(2);
        const int64_t groups = projection.shaped({tokens, -1, -1}).size(1);
        const int64_t d_state = projection.size(2);
        real(h.shaped({-1, heads, d_state, head_dim}));
        SsdArgs args{};
        args.x = real_rows(in, {tokens, heads, head_dim});
        args.dt = real_rows(View("dt", dt), {tokens, heads});
        args.A = float_vector("A", A, heads);
        args.B = real_rows(projection, {tokens, groups, d_state});
        args.C = real_rows(View("C", C), {tokens, groups, d_state});
        args.D = float_vector("D", D, heads);
        args.dt_bias = float_vector("dt_bias", dt_bias, heads);
        args.y = real_rows(View("y", y), {tokens, heads, head_dim});
        args.state = {h.data<void>(), h.stride(0), h.stride(2), h.dtype()};
        args.head_stride = h.stride(1);
        args.seqs = sequences(cu_seqlens, slots, sources, fresh, tokens, h.size(0));
        args.head_group = head_groups(View("head_group", head_group), heads, groups);
        args.heads = heads;
        args.head_dim = head_dim;
        args.d_state = d_state;
        args.groups = groups;
        args.dt_min = dt_min;
        args.dt_max = dt_max;
        launch(kernels().ssd_scan, args);
    }, nb::arg("x"), nb::arg("dt"), nb::arg("A"), nb::arg("B"), nb::arg("C"), nb::arg("D"),
       nb::arg("dt_bias"), nb::arg("state"), nb::arg("cu_seqlens"), nb::arg("slots"),
       nb::arg("sources"), nb::arg("fresh"), nb::arg("dt_min"), nb::arg("dt_max"),
       nb::arg("head_group"), nb::arg("y"));
}

}  // namespace

void bind_kernels(nb::module_& m) {
    const char* isa = std::getenv("SIDEWINDER_ISA");
    set_isa(isa == nullptr ? "" : isa);
    m.def("set_tensor_type", &set_tensor_type, nb::arg("type"), nb::arg("exchange"));
    m.def("set_isa", [](const std::string& name) { set_isa(name.c_str()); }, nb::arg("name"));
    m.def("isa", [] { return std::string(kernels().isa); });
    m.def("set_threads", &set_threads, nb::arg("n"));
    m.def("threads", &threads);
    bind_conv(m);
    bind_selective_scan(m);
    bind_ssd(m);
}

}  // namespace sidewinder
