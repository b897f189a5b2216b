// The module `sidewinder._native`: every group of bindings is registered here.
#include "bindings.h"

NB_MODULE(_native, m) {
    m.doc() = "Native CPU code of Sidewinder.";
    sidewinder::bind_kernels(m);
    sidewinder::bind_linear_maps(m);
    sidewinder::bind_norms(m);
    sidewinder::bind_attention(m);
    sidewinder::bind_collectives(m);
    sidewinder::bind_codec(m);
    sidewinder::bind_memory(m);
    sidewinder::bind_recording(m);
}
