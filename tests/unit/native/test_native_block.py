"""The operators of a hybrid's shared block but attention, on CPUs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, TOLERANCE, _native, kernels_of
from ops_cases import make_case

from sidewinder.activations import ACTIVATIONS
from sidewinder.ops import native, native_attention
from sidewinder.ops.concat_rms_norm import reference
from sidewinder.ops.gated_activation.reference import FUNCTIONS, gated_activation
from sidewinder.testing import assert_close

EACH_ACTIVATION = pytest.mark.parametrize("activation", ACTIVATIONS)


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(
    st.integers(1, 5), st.integers(1, 200), st.integers(1, 90), st.integers(0, 99), st.booleans()
)
def test_concat_rms_norm_is_the_reference(level, dtype, tokens, width, more, seed, added):
    case = make_case([tokens], seed)
    x, beside = case.strided(tokens, width, dtype=dtype), case.strided(tokens, more, dtype=dtype)
    weight = case.randn(width + more, dtype=dtype)
    residual = case.strided(tokens, width + 2, dtype=dtype)[:, 1:-1] if added else None
    expected = reference.concat_rms_norm(x, beside, weight, 1e-5, residual)
    with kernels_of(level):
        result = native.concat_rms_norm(x, beside, weight, 1e-5, residual)
        if added:
            (expected, expected_sum), (result, total) = expected, result
            assert torch.equal(expected_sum, total)
            residual = total
        joined = torch.cat([x if residual is None else residual, beside], dim=1)
        assert torch.equal(result, native.rms_norm(joined, weight, 1e-5)), "not to the bit"
    assert_close("y", expected, result, TOLERANCE[dtype])


@LEVELS
@DTYPES
@EACH_ACTIVATION
@settings(max_examples=10)
@given(
    st.integers(1, 5), st.one_of(st.integers(1, 140), st.integers(1020, 2100)),
    st.sampled_from([1.0, 6.0]), st.integers(0, 99),
)  # fmt: skip
def test_gated_activation_is_the_reference(level, dtype, activation, tokens, width, spread, seed):
    case = make_case([tokens], seed)
    gate = case.strided(tokens, width, dtype=dtype) * spread
    up = case.strided(tokens, width, dtype=dtype)
    with kernels_of(level, threads=2):
        result = native.gated_activation(gate, up, activation)
    assert_close("y", gated_activation(gate, up, activation), result, TOLERANCE[dtype])


@LEVELS
@EACH_ACTIVATION
def test_small_results_are_as_precise(level, activation):
    """Relative to each value by itself: also where almost nothing is left of a negative number."""
    x = torch.cat([torch.linspace(-9, 9, 4001), torch.tensor([-1e-30, 1e-30, 0.0, 1e30])])[None]
    with kernels_of(level):
        result = native.gated_activation(x, torch.ones_like(x), activation)
    expected = exact(activation, x)
    error = (result.double() - expected).abs() / expected.abs().clamp(min=1e-35)
    assert error.max() < 2e-5


def exact(activation, x):
    """In float64, without cancellation."""
    x = x.double()
    if activation == "gelu":
        return x * torch.special.erfc(-x / math.sqrt(2.0)) / 2
    if activation == "gelu_tanh":
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return FUNCTIONS[activation](x)


@LEVELS
@EACH_ACTIVATION
def test_nan_stays_nan_and_infinity_infinity(level, activation):
    x = torch.tensor([[math.nan, math.inf, 1.0]])
    with kernels_of(level):
        result = native.gated_activation(x, torch.ones_like(x), activation)[0]
    assert result[0].isnan()
    assert result[1] == math.inf
    assert result[2].isfinite()


@LEVELS
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu"])
def test_far_below_zero_it_is_what_torch_has(level, activation):
    x = torch.tensor([[-math.inf, -3e38, -1e30, -200.0]])
    with kernels_of(level):
        result = native.gated_activation(x, torch.ones_like(x), activation)
    torch.testing.assert_close(result, FUNCTIONS[activation](x), equal_nan=True, rtol=0, atol=0)


@LEVELS
@DTYPES
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_keys_and_values_are_stored_bit_for_bit(level, dtype, rows):
    case = make_case([1], seed=rows)
    k, v = case.strided(rows, 2, 29, dtype=dtype), case.strided(rows, 3, 29, dtype=dtype)[:, 1:]
    keys, values = (torch.full((rows + 9, 2, 29), torch.nan, dtype=dtype) for _ in range(2))
    places = torch.randperm(rows + 9, generator=case.generator)
    with kernels_of(level, threads=2):
        native_attention.store_kv(k, v, keys, values, places[:rows])
    for stored, given_rows in ((keys, k), (values, v)):
        assert torch.equal(stored[places[:rows]], given_rows)
        assert stored[places[rows:]].isnan().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"places": torch.tensor([0, 4])}, "outside the keys"),
        ({"places": torch.tensor([-1, 0])}, "outside the keys"),
        ({"places": torch.tensor([0])}, "places has shape"),
        ({"values": torch.zeros(4, 2, 3).bfloat16()}, "one dtype"),
        ({"values": torch.zeros(5, 2, 3)}, "values has shape"),
        ({"keys": torch.zeros(4, 2, 4)[:, :, :3]}, "keys is not contiguous"),
        ({"v": torch.zeros(2, 3, 3)}, "v has shape"),
    ],
    ids=str,
)
def test_what_would_be_stored_elsewhere_is_refused(changes, message):
    arguments = {
        "k": torch.zeros(2, 2, 3), "v": torch.zeros(2, 2, 3), "keys": torch.zeros(4, 2, 3),
        "values": torch.zeros(4, 2, 3), "places": torch.tensor([0, 3]),
    }  # fmt: skip
    native_attention.store_kv(**arguments)
    with pytest.raises(ValueError, match=message):
        native_attention.store_kv(**arguments | changes)


def test_what_does_not_fit_is_refused():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="up has shape"):
        native.gated_activation(x, torch.ones(2, 4), "relu")
    with pytest.raises(ValueError, match="activation: 0 to 3"):
        _native.gated_activation(x, x, len(ACTIVATIONS), x)
    with pytest.raises(ValueError, match=r"weight has shape \[ 3 \], not \[ 6 \]"):
        native.concat_rms_norm(x, x, torch.ones(3), 1e-5)


def test_other_dtypes_are_torchs():
    rows, pages = torch.ones(1, 2, 3).half(), torch.zeros(4, 2, 3).half()
    native_attention.store_kv(rows, rows, pages, pages, torch.tensor([2]))
    assert torch.equal(pages[2], rows[0])
