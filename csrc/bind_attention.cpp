// Attention, the storing of keys and values and their positions as Python functions: as
// bind_kernels.cpp.
#include <cstring>
#include <stdexcept>

#include "arguments.h"
#include "bindings.h"
#include "thread_pool.h"

namespace sidewinder {
namespace {

// Rows of k and v, `bytes` each, and where they go.
struct StoreArgs {
    const char *k, *v;
    char *keys, *values;
    const int64_t* places;
    int64_t rows, k_stride, v_stride, bytes;
};

// Only copies: the same on all levels.
void store_rows(const StoreArgs& a) {
    parallel(a.rows, 1 + (1 << 15) / (a.bytes + 1), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            std::memcpy(a.keys + a.places[t] * a.bytes, a.k + t * a.k_stride, a.bytes);
            std::memcpy(a.values + a.places[t] * a.bytes, a.v + t * a.v_stride, a.bytes);
        }
    });
}

int64_t bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

void bind_store(nb::module_& m) {
    m.def("store_kv", [](Handle k, Handle v, Handle keys, Handle values, Handle places) {
        const View new_k("k", k), new_v("v", v), all_k("keys", keys), all_v("values", values);
        const View where("places", places);
        const int64_t rows = new_k.shaped({-1, -1, -1}).size(0);
        const int64_t heads = new_k.size(1), width = new_k.size(2);
        const int64_t n_places = all_k.shaped({-1, heads, width}).size(0);
        const Rows k_rows = real_rows(new_k, {rows, heads, width});
        const Rows v_rows = real_rows(new_v, {rows, heads, width});
        const Rows k_pages = real(all_k.packed_from(0)).rows();
        const Rows v_pages = real(all_v.shaped({n_places, heads, width}).packed_from(0)).rows();
        for (DType other : {v_rows.dtype, k_pages.dtype, v_pages.dtype}) {
            if (other != k_rows.dtype) throw std::invalid_argument("k, v and pages: one dtype");
        }
        const int64_t* at = where.shaped({rows}).of({Element::i64}).data<int64_t>();
        for (int64_t t = 0; t < rows; ++t) {
            if (at[t] < 0 || at[t] >= n_places) {
                throw std::invalid_argument("places names a place outside the keys");
            }
        }
        const int64_t each = bytes_of(k_rows.dtype);
        launch(store_rows, StoreArgs{static_cast<const char*>(k_rows.data),
                                     static_cast<const char*>(v_rows.data),
                                     static_cast<char*>(k_pages.data),
                                     static_cast<char*>(v_pages.data), at, rows,
                                     k_rows.stride * each, v_rows.stride * each,
                                     heads * width * each});
    }, nb::arg("k"), nb::arg("v"), nb::arg("keys"), nb::arg("values"), nb::arg("places"));
}

void bind_rotary(nb::module_& m) {
    m.def("rotary", [](Handle q, Handle k, Handle positions, Handle frequencies) {
        const View queries("q", q), keys("k", k), where("positions", positions);
        const View speeds("frequencies", frequencies);
        RotaryArgs args{};
        args.rows = queries.shaped({-1, -1, -1}).size(0);
        args.heads = queries.size(1);
        args.width = queries.size(2);
        args.kv_heads = keys.shaped({args.rows, -1, args.width}).size(1);
        args.pairs = speeds.shaped({-1}).of({Element::f32}).size(0);
        if (args.pairs < 1 || 2 * args.pairs > args.width) {
            throw std::invalid_argument("frequencies: one for every pair of a head's channels");
        }
        args.q = real_rows(queries, {args.rows, args.heads, args.width});
        args.k = real_rows(keys, {args.rows, args.kv_heads, args.width});
        args.positions = where.shaped({args.rows}).of({Element::i64}).data<int64_t>();
        args.frequencies = speeds.data<float>();
        launch(kernels().rotary, args);
    }, nb::arg("q"), nb::arg("k"), nb::arg("positions"), nb::arg("frequencies"));
}

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
    bind_store(m);
    bind_rotary(m);
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
