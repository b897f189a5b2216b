// Attention as a Python function: as bind_kernels.cpp.
#include <stdexcept>

#include "arguments.h"
#include "bindings.h"

namespace sidewinder {
namespace {

// Every sequence has a token, no more than it has places, and all of those exist.
void check_places(const AttentionArgs& a, int64_t columns, int64_t n_places) {
    for (int64_t s = 0; s < a.sequences; ++s) {
        if (a.lengths[s] < 1 || a.lengths[s] > columns) {
            throw std::invalid_argument("lengths do not fit the places");
        }
        for (int64_t t = 0; t < a.lengths[s]; ++t) {
            const int64_t place = a.read[s * a.read_stride + t];
            if (place < 0 || place >= n_places) {
                throw std::invalid_argument("read names a place outside the keys");
            }
        }
    }
}

}  // namespace

void bind_attention(nb::module_& m) {
    m.def("paged_attention", [](Handle q, Handle k, Handle v, Handle read, Handle lengths,
                                float scale, Handle y) {
        const View queries("q", q), keys("k", k), values("v", v), places("read", read);
        const View counts("lengths", lengths);
        AttentionArgs args{};
        args.sequences = queries.shaped({-1, -1, -1}).size(0);
        args.heads = queries.size(1);
        args.width = queries.size(2);
        args.kv_heads = keys.shaped({-1, -1, args.width}).size(1);
        if (args.width < 1 || args.kv_heads < 1 || args.heads % args.kv_heads != 0) {
            throw std::invalid_argument("k: its heads do not divide those of q");
        }
        const int64_t n_places = keys.size(0), columns = places.shaped({args.sequences, -1}).size(1);
        args.q = real_rows(queries, {args.sequences, args.heads, args.width});
        args.k = real_rows(keys, {n_places, args.kv_heads, args.width});
        args.v = real_rows(values, {n_places, args.kv_heads, args.width});
        args.y = real_rows(View("y", y), {args.sequences, args.heads, args.width});
        if (args.v.dtype != args.k.dtype) throw std::invalid_argument("v: not of the dtype of k");
        args.read = places.of({Element::i64}).data<int64_t>();
        args.read_stride = places.stride(0);
        args.lengths = counts.shaped({args.sequences}).of({Element::i64}).data<int64_t>();
        args.scale = scale;
        check_places(args, columns, n_places);
        launch(kernels().paged_attention, args);
    }, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("read"), nb::arg("lengths"),
       nb::arg("scale"), nb::arg("y"));
}

}  // namespace sidewinder
