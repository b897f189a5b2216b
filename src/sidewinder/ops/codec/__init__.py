"""Few-bit messages of activations: encode; decode, sum over ranks, encode again; decode and sum.

`decode_add` and `decode_rms_norm` also add the residual to what `decode` gives, and normalise.
"""

from sidewinder.ops.codec import native, reference
from sidewinder.ops.codec.formats import CODECS, Codec
from sidewinder.ops.codec.fused import FusedByParts
from sidewinder.ops.dispatch import Operator

_TRITON = "sidewinder.ops.codec.triton:"

encode = Operator(
    "codec_encode",
    reference=reference.encode,
    torch=reference.encode,
    triton=_TRITON + "encode",
)
reduce = Operator(
    "codec_reduce",
    reference=reference.reduce,
    torch=reference.reduce,
    triton=_TRITON + "reduce",
)
decode = Operator(
    "codec_decode",
    reference=reference.decode,
    torch=reference.decode,
    triton=_TRITON + "decode",
)

if native.is_available():
    encode.register("native", native.encode)
    reduce.register("native", native.reduce)
    decode.register("native", native.decode)

_fused = FusedByParts(decode)
decode_add = Operator(
    "codec_decode_add",
    reference=reference.decode_add,
    torch=_fused.decode_add,
    triton=_TRITON + "decode_add",
)
decode_rms_norm = Operator(
    "codec_decode_rms_norm",
    reference=reference.decode_rms_norm,
    torch=_fused.decode_rms_norm,
    triton=_TRITON + "decode_rms_norm",
)

if native.is_available():
    decode_rms_norm.register("native", native.decode_rms_norm)

__all__ = ["CODECS", "Codec", "decode", "decode_add", "decode_rms_norm", "encode", "reduce"]
