"""The codecs' Triton kernels equal the definition bit for bit."""

import pytest
import torch
from codec_cases import gaussian, same_bits
from triton_cases import DTYPES, TOLERANCE, here, poisoned_outputs

from sidewinder.ops import codec as operators
from sidewinder.ops.codec import CODECS, reference, triton
from sidewinder.ops.dispatch import forced
from sidewinder.testing import assert_close

NAMES = pytest.mark.parametrize("name", list(CODECS))


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
    theirs = torch.stack([reference.encode(part, codec, stripes) for part in parts])
    first = theirs[:, 0].contiguous()
    expected = reference.decode(theirs, codec, torch.empty_like(parts[0]))
    with poisoned_outputs():
        ours = torch.stack([triton.encode(here(part), codec, stripes) for part in parts])
        total = triton.reduce(here(first), codec)
        out = triton.decode(here(theirs), codec, here(torch.full_like(parts[0], torch.nan)))
    assert same_bits(ours.cpu(), theirs)
    assert same_bits(total.cpu(), reference.reduce(first, codec))
    assert same_bits(out.cpu(), expected)


@DTYPES
@NAMES
@pytest.mark.parametrize(
    ("shape", "ranks", "stripes"), [((1, 1), 1, 1), ((6, 129), 2, 1), ((7, 300), 3, 3)], ids=str
)
def test_equals_the_reference(name, dtype, shape, ranks, stripes):
    check(hard(ranks, *shape, dtype), name, stripes)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["int8", "int6", "int4"])
def test_equals_the_reference_for_what_is_not_finite(name, bad):
    parts = gaussian(2, 3, 140)
    parts[1, 2, 130] = bad
    parts[0, 0, 0] = bad
    check(parts, name, 2)
    check(torch.full((2, 1, 40), torch.finfo(torch.float32).max), name, 1)


@NAMES
def test_rows_may_lie_apart(name):
    codec = CODECS[name]
    wide = gaussian(3, 200)
    x = wide[:, 30:170]
    messages = triton.encode(here(x), codec, 2)
    assert torch.equal(messages.cpu(), reference.encode(x, codec, 2))
    target = here(torch.zeros(3, 200))
    triton.decode(messages[None], codec, target[:, 30:170])
    expected = reference.decode(messages[None].cpu(), codec, torch.empty(3, 140))
    assert torch.equal(target[:, 30:170].cpu(), expected)
    assert not target[:, :30].any()
    assert not target[:, 170:].any()


@DTYPES
@pytest.mark.parametrize("name", ["int8", "int6"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_sum_joined_with_residual_and_norm(name, dtype, weighted, backend):
    codec, parts = CODECS[name], gaussian(2, 3, 77).to(dtype)
    messages = torch.stack([reference.encode(part, codec, 2) for part in parts])
    residual = gaussian(3, 90, seed=5)[:, 4:81]
    weight = gaussian(77, seed=6).to(dtype) if weighted else None
    arguments = (messages, codec, dtype)
    expected, expected_sum = reference.decode_rms_norm(*arguments, weight, 1e-5, residual)
    with forced(backend), poisoned_outputs():
        arguments = (here(messages), codec, dtype)
        y, total = operators.decode_rms_norm(*arguments, here(weight), 1e-5, here(residual))
        added = operators.decode_add(*arguments, here(residual))
    assert torch.equal(total.cpu(), expected_sum)
    assert torch.equal(added.cpu(), expected_sum)
    assert y.dtype == expected.dtype
    assert_close("y", expected, y.cpu(), TOLERANCE[dtype])
