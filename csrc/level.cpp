// One instruction-set level's table of kernels; compiled once per level (see CMakeLists.txt).
#include "codec.h"
#include "conv.h"
#include "linear.h"
#include "norm.h"
#include "rank_sum.h"
#include "scan.h"
#include "ssd.h"

namespace sidewinder::SW_LEVEL {

extern const Kernels table;
const Kernels table{SW_LEVEL_NAME, causal_conv1d,  selective_scan, ssd_scan,
                    rms_norm,      gated_rms_norm, linear,         rank_sum,
                    codec_encode,  codec_reduce,   codec_decode,   codec_decode_norm};

}  // namespace sidewinder::SW_LEVEL
