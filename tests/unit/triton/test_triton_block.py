"""The Triton kernels of a hybrid's shared block but attention, against their definitions."""

import pytest
import torch
from ops_cases import make_case
from triton_cases import DTYPES, TOLERANCE, here, launching, on_device

from sidewinder.activations import ACTIVATIONS
from sidewinder.ops.concat_rms_norm import reference, triton
from sidewinder.ops.gated_activation import reference as gate_reference
from sidewinder.ops.gated_activation import triton as gate_triton
from sidewinder.ops.store_kv import triton as store_triton
from sidewinder.testing import assert_close


@DTYPES
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("width", "more"), [(1, 1), (77, 20), (20, 77), (128, 128)], ids=str)
def test_concat_rms_norm_is_the_reference(dtype, added, width, more):
    case = make_case([3], seed=width)
    arguments = {
        "x": case.strided(3, width, dtype=dtype),
        "beside": case.strided(3, more, dtype=dtype),
        "weight": case.randn(width + more, dtype=dtype),
        "eps": 1e-5,
        "residual": case.strided(3, width + 2, dtype=dtype)[:, 1:-1] if added else None,
    }
    expected = reference.concat_rms_norm(**arguments)
    result = on_device(triton.concat_rms_norm, **arguments)
    if added:
        (expected, expected_sum), (result, total) = expected, result
        assert torch.equal(expected_sum, total)
    assert result.dtype == dtype
    assert_close("y", expected, result, TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [1, 77, 1500])
def test_gated_activation_is_the_reference(dtype, activation, width):
    case = make_case([3], seed=width)
    arguments = {
        "gate": case.strided(3, width, dtype=dtype) * 3,
        "up": case.strided(3, width + 2, dtype=dtype)[:, 1:-1],
        "activation": activation,
    }
    result = on_device(gate_triton.gated_activation, **arguments)
    assert result.dtype == dtype
    assert_close("y", gate_reference.gated_activation(**arguments), result, TOLERANCE[dtype])


def test_what_is_not_a_number_stays_so():
    x = here(torch.tensor([[torch.nan, -torch.inf, 2.0]]))
    result = gate_triton.gated_activation(x, torch.ones_like(x), "relu")
    assert result[0].isnan().tolist() == [True, False, False]
    assert result[0, 1:].tolist() == [0.0, 2.0]


@DTYPES
@pytest.mark.parametrize(("heads", "width"), [(2, 5), (3, 600)], ids=str)
def test_keys_and_values_are_stored_bit_for_bit(dtype, heads, width):
    case = make_case([1], seed=width)
    k = case.strided(4, heads, width, dtype=dtype)
    v = case.strided(4, heads + 1, width, dtype=dtype)[:, 1:]
    pages = torch.full((9, heads, width), torch.nan, dtype=dtype)
    keys, values, places = here(pages), here(pages), torch.tensor([7, 0, 8, 3])
    store_triton.store_kv(here(k), here(v), keys, values, here(places))
    for stored, given_rows in ((keys.cpu(), k), (values.cpu(), v)):
        assert torch.equal(stored[places], given_rows)
        assert stored[[1, 2, 4, 5, 6]].isnan().all()


def test_each_is_one_launch():
    x, pages = here(torch.ones(2, 1, 1025)), here(torch.zeros(4, 1, 1025))
    rows = x[:, 0]
    with launching.recording() as launches:
        store_triton.store_kv(x, x, pages, pages, here(torch.tensor([1, 2])))
        gate_triton.gated_activation(rows, rows, "gelu")
        triton.concat_rms_norm(rows, rows, here(torch.ones(2050)), 1e-5, rows)
    assert [launch.grid for launch in launches] == [(2, 2), (2, 2), (2,)]
