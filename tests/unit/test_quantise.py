import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidewinder.ops.linear import reference, vectorized
from sidewinder.quantise import GROUP_SIZES, quantise
from sidewinder.testing import assert_close


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 300), st.sampled_from(GROUP_SIZES), st.integers(0, 99))
def test_every_weight_is_within_half_a_step(outputs, inputs, group_size, seed):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    quantised = quantise(weight, group_size)
    assert quantised.values.abs().max() == 127
    steps = quantised.scales.repeat_interleave(group_size, dim=1)[:, :inputs]
    assert ((quantised.dequantise() - weight).abs() <= steps * 0.5001).all()


def test_slicing_at_groups_before_or_after_is_the_same():
    weight = torch.randn(6, 200)
    whole, part = quantise(weight, 64), quantise(weight[2:5, 64:192], 64)
    assert torch.equal(whole.values[2:5, 64:192], part.values)
    assert torch.equal(whole.scales[2:5, 1:3], part.scales)


def test_groups_of_zeros_and_of_the_smallest_numbers_stay_finite():
    weight = torch.zeros(2, 64)
    weight[1] = 1e-44
    quantised = quantise(weight, 32)
    assert quantised.dequantise().isfinite().all()
    assert torch.equal(quantised.dequantise()[0], weight[0])


def test_bytes_are_about_half_of_bfloat16():
    weight = torch.randn(64, 1024)
    assert quantise(weight, 64).nbytes / weight.bfloat16().nbytes < 0.54


@pytest.mark.parametrize(
    ("weight", "group_size", "message"),
    [
        (torch.ones(2, 2), 48, "group_size=48 is not one of 32, 64, 128"),
        (torch.ones(4), 32, "1 dimensions"),
        (torch.tensor([[1.0, torch.inf]]), 32, "not finite"),
    ],
    ids=["group", "dimensions", "infinite"],
)
def test_what_cannot_be_quantised_is_refused(weight, group_size, message):
    with pytest.raises(ValueError, match=message):
        quantise(weight, group_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_and_reference_multiply_by_the_dequantised_weight(dtype):
    x, bias, weight = torch.randn(3, 70).to(dtype), torch.randn(9), quantise(torch.randn(9, 70))
    expected = x.double() @ weight.dequantise().double().T + bias
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    assert_close("reference", expected, reference.linear(x, weight, bias), tolerance)
    assert_close("torch", expected, vectorized.linear(x, weight, bias), tolerance)
