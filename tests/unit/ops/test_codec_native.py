"""The native codecs equal the reference bit for bit, at every instruction-set level."""

from itertools import product

import pytest
import torch
from codec_cases import SHAPES, gaussian, same_bits
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.ops.codec import CODECS, native, reference
from sidewinder.ops.native import rms_norm as native_norm
from sidewinder.testing import assert_close

if not native.is_available():
    pytest.skip("the native module is not built", allow_module_level=True)
_native = native._native

ALL = tuple(CODECS)
LEVELS = ("portable", "neon", "avx2", "avx512", "avx512_bf16")


@pytest.fixture(params=LEVELS)
def isa(request):
    """Each level that this machine can run."""
    before = _native.isa()
    try:
        _native.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _native.set_isa(before)


def hard(ranks: int, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Groups of many magnitudes, and some of zeros, ties, denormals and huge values."""
    parts = gaussian(ranks, rows, width, seed=rows * width)
    parts *= 10 ** (6 * gaussian(ranks, rows, 1, seed=1))
    parts[:, ::3, ::7] = 0
    parts[:, 1::4] = parts[:, 1::4].mul(4).round()
    parts[:, 2::5] *= 1e-38
    parts[0, 4::5] *= 1e30
    return parts.to(dtype)


def check(parts: torch.Tensor, name: str, stripes: int) -> None:
    codec = CODECS[name]
    ours = [native.encode(part, codec, stripes) for part in parts]
    theirs = [reference.encode(part, codec, stripes) for part in parts]
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))
    messages = torch.stack(theirs)
    first = messages[:, 0].contiguous()
    assert same_bits(native.reduce(first, codec), reference.reduce(first, codec))
    out = torch.full_like(parts[0], torch.nan)
    expected = reference.decode(messages, codec, torch.empty_like(out))
    assert same_bits(native.decode(messages, codec, out), expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_equals_the_reference(name, dtype):
    for rows, width in [*SHAPES, (33, 777), (2, 2560)]:
        for ranks, stripes in ((1, 1), (2, 1), (3, 3), (4, 4)):
            check(hard(ranks, rows, width, dtype), name, stripes)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["int8", "int6", "int4"])
def test_equals_the_reference_for_what_is_not_finite(name, bad):
    parts = gaussian(3, 4, 300)
    parts[1, 2, 290] = bad
    parts[0, 0, 0] = bad
    check(parts, name, 3)
    check(parts.bfloat16(), name, 3)
    check(torch.full((3, 1, 40), torch.finfo(torch.float32).max), name, 3)


@given(
    st.sampled_from(["int8", "int6", "int4"]),
    st.lists(st.floats(width=32), min_size=1, max_size=140),
)
def test_equals_the_reference_for_any_float(name, values):
    x = torch.tensor(values)
    check(torch.stack([x[None], x.flip(0)[None]]), name, 1)


@pytest.mark.parametrize("name", ALL)
def test_rows_may_lie_apart(name):
    codec = CODECS[name]
    wide = gaussian(5, 400)
    x = wide[:, 30:330]
    assert torch.equal(native.encode(x, codec, 2), native.encode(x.contiguous(), codec, 2))
    target = torch.zeros(5, 400)
    native.decode(native.encode(x, codec)[None], codec, target[:, 30:330])
    expected = reference.decode(reference.encode(x, codec)[None], codec, torch.empty(5, 300))
    assert torch.equal(target[:, 30:330], expected)
    assert not target[:, :30].any()
    assert not target[:, 330:].any()


def test_threads_do_not_change_results():
    x, codec = hard(1, 300, 700, torch.bfloat16)[0], CODECS["int4"]
    before = _native.threads()
    try:
        _native.set_threads(3)
        assert torch.equal(native.encode(x, codec, 2), reference.encode(x, codec, 2))
    finally:
        _native.set_threads(before)


def test_messages_of_another_size_are_refused():
    x, codec = gaussian(4, 300), CODECS["int8"]
    messages = native.encode(x, codec)
    with pytest.raises(ValueError, match="another size"):
        native.decode(messages[None, :, :-130].contiguous(), codec, x)
    with pytest.raises(ValueError, match="whole groups"):
        native.reduce(messages[:, :-1].contiguous(), codec)


@pytest.mark.parametrize("name", ALL)
def test_float16_goes_to_the_reference(name):
    x, codec = gaussian(3, 70, dtype=torch.float16), CODECS[name]
    out = native.decode(native.encode(x, codec)[None], codec, torch.empty_like(x))
    assert (out - x).abs().max() <= 4 / 2 ** min(codec.bits - 1, 7)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_fused_norm_has_the_bits_of_its_parts(name, dtype, weight_dtype):
    codec = CODECS[name]
    for (rows, width), (ranks, stripes) in product([(1, 1), (3, 129), (33, 777)], [(2, 1), (3, 3)]):
        parts = gaussian(ranks, rows, width).to(dtype)
        messages = torch.stack([reference.encode(part, codec, stripes) for part in parts])
        weight = None if weight_dtype is None else gaussian(1, width, seed=2)[0].to(weight_dtype)
        for residual in (gaussian(rows, width, seed=3), gaussian(rows, width, seed=3).bfloat16()):
            delta = native.decode(messages, codec, torch.empty(rows, width, dtype=dtype))
            expected = native_norm(delta, weight, 1e-5, residual)
            result = native.decode_rms_norm(messages, codec, dtype, weight, 1e-5, residual)
            assert all(same_bits(a, b) for a, b in zip(expected, result, strict=True))
            defined = reference.decode_rms_norm(messages, codec, dtype, weight, 1e-5, residual)
            for a, b in zip(defined, result, strict=True):
                assert a.dtype == b.dtype
                is_wide = a.dtype == residual.dtype == torch.float32
                tolerance = 1e-5 if is_wide else 2**-6
                assert_close("fused", a.float(), b.float(), tolerance)
