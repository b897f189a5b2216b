// One instruction-set level's table of kernels; compiled once per level (see CMakeLists.txt).
#include "activation.h"
#include "attention.h"
#include "codec.h"
#include "conv.h"
#include "linear.h"
#if defined(SW_AVX512_BF16)
#include "linear_packed_integer.h"
#elif defined(SW_AVX512) || defined(SW_AVX2)
#include "linear_packed_int8.h"
#endif
#include "experts.h"
#include "norm.h"
#include "rank_sum.h"
#include "rotary.h"
#include "round_int4.h"
#include "scan.h"
#include "ssd.h"

namespace sidewinder::SW_LEVEL {

#if defined(SW_AVX512_BF16)
constexpr int kPackedBits = 16 | 8 | 4;
#elif defined(SW_AVX512) || defined(SW_AVX2)
constexpr int kPackedBits = 8 | 4;
#else
constexpr int kPackedBits = 0;
constexpr void (*linear_packed)(const LinearArgs&) = nullptr;
#endif

extern const Kernels table;
const Kernels table{SW_LEVEL_NAME,   causal_conv1d, selective_scan, ssd_scan,
                    rms_norm,        gated_rms_norm, gated_squares, with_scalar,
                    scaled_rows,     add_rows,      gated_activation, rotary,
                    paged_attention, linear,        linear_packed,  kPackedBits,
                    round_int4,      route,         experts,        rank_sum,
                    codec_encode,    codec_reduce,  codec_decode,   codec_decode_norm};

}  // namespace sidewinder::SW_LEVEL
