"""Rounding to int4 in C++ is the definition's, to the bit, on every level."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import LEVELS, _native, kernels_of
from ops_cases import make_case

from sidewinder import quantise as module
from sidewinder.quantise import GROUP_SIZES, quantise


def by_definition(weight, group_size):
    """The same without the native module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_native", None)
        return quantise(weight, group_size, 4)


def assert_same(one, other):
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.scales.view(torch.int16), other.scales.view(torch.int16))


@LEVELS
@settings(max_examples=25)
@given(
    st.integers(1, 9), st.integers(1, 300), st.sampled_from(GROUP_SIZES),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99),
)  # fmt: skip
def test_it_is_the_definition(level, outputs, inputs, group_size, dtype, seed):
    weight = make_case([1], seed).strided(outputs, inputs, dtype=dtype)
    weight[0] *= 1e-6
    with kernels_of(level, threads=2):
        assert_same(quantise(weight, group_size, 4), by_definition(weight, group_size))


@LEVELS
def test_zeros_ties_and_the_smallest_numbers(level):
    weight = torch.zeros(6, 64)
    weight[1] = 1e-44
    weight[2, 40] = -1e-29
    weight[3] = torch.tensor([1.0, -1.0]).repeat(32)
    weight[4] = torch.arange(-32, 32) / 4
    weight[5] = 3e38
    with kernels_of(level):
        assert_same(quantise(weight, 32, 4), by_definition(weight, 32))


@LEVELS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 31, 69])
def test_what_is_not_finite_is_refused(level, bad, place):
    weight = torch.ones(3, 70)
    weight[1, place] = bad
    with kernels_of(level), pytest.raises(ValueError, match="not finite"):
        quantise(weight, 32, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 48}, "group_size: 32, 64 or 128"),
        ({"integers": torch.empty(3, 70, dtype=torch.int8)}, "integers has shape"),
        ({"scales": torch.empty(3, 3)}, "scales is float32, not bfloat16"),
        ({"x": torch.ones(3, 70).half()}, "x has an element type"),
    ],
    ids=["group", "integers", "scales", "half"],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {
        "x": torch.ones(3, 70),
        "group_size": 32,
        "integers": torch.empty(3, 96, dtype=torch.int8),
        "scales": torch.empty(3, 3, dtype=torch.bfloat16),
    }
    _native.round_int4(**arguments)
    with pytest.raises(ValueError, match=message):
        _native.round_int4(**arguments | change)
