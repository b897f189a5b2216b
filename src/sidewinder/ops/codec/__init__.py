"""Few-bit messages of activations: encode; decode, sum over ranks, encode again; decode and sum."""

from sidewinder.ops.codec import native, reference
from sidewinder.ops.codec.formats import CODECS, Codec
from sidewinder.ops.dispatch import Operator

encode = Operator("codec_encode", reference=reference.encode, torch=reference.encode)
reduce = Operator("codec_reduce", reference=reference.reduce, torch=reference.reduce)
decode = Operator("codec_decode", reference=reference.decode, torch=reference.decode)

if native.is_available():
    encode.register("native", native.encode)
    reduce.register("native", native.reduce)
    decode.register("native", native.decode)

__all__ = ["CODECS", "Codec", "decode", "encode", "reduce"]
