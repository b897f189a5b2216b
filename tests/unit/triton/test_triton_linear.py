"""Products with one row and a few against the definition; what else goes to torch."""

import pytest
import torch
from ops_cases import make_case
from triton_cases import DTYPES, TOLERANCE, on_device, overridden

from sidewinder.ops import launching
from sidewinder.ops.linear import reference, triton
from sidewinder.testing import assert_close

SMALL = {
    "row_product": {"block_o": 4, "block_i": 16, "num_warps": 1},
    "few_rows_product": {"block_o": 16, "block_i": 32, "num_warps": 4, "num_stages": 2},
}


@DTYPES
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), [(9, 37), (4, 16), (1, 1), (3, 90)])
def test_a_row_is_the_reference(dtype, outputs, inputs, biased):
    case = make_case([1], seed=inputs)
    arguments = {
        "x": case.strided(1, inputs, dtype=dtype),
        "weight": case.strided(outputs, inputs, dtype=dtype),
        "bias": case.randn(outputs, dtype=dtype) if biased else None,
    }
    with overridden(**SMALL):
        result = on_device(triton.linear, **arguments)
    assert_close("y", reference.linear(**arguments), result, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(2, 9, 37), (5, 16, 32), (16, 1, 1), (33, 20, 90), (64, 33, 64)]
)
def test_a_few_rows_are_the_reference(dtype, rows, outputs, inputs, biased):
    case = make_case([1], seed=inputs)
    arguments = {
        "x": case.strided(rows, inputs, dtype=dtype),
        "weight": case.strided(outputs, inputs, dtype=dtype),
        "bias": case.randn(outputs, dtype=dtype) if biased else None,
    }
    with overridden(**SMALL):
        result = on_device(triton.linear, **arguments)
    assert result.shape == (rows, outputs)
    assert result.dtype == dtype
    assert_close("y", reference.linear(**arguments), result, TOLERANCE[torch.bfloat16])


def launches_of(x, weight):
    with overridden(**SMALL), launching.recording() as launches:
        triton.linear(x, weight)
    return len(launches)


def test_several_rows_are_torchs():
    x, weight = torch.randn(3, 64), torch.randn(8, 64)
    assert launches_of(x[:1], weight) == 1
    assert launches_of(x, weight) == 0, "float32 is not for matrix units"
    assert launches_of(x[:1].bfloat16(), weight.bfloat16()) == 1
    assert launches_of(x.bfloat16(), weight.bfloat16()) == 1
    assert launches_of(torch.randn(65, 64).bfloat16(), weight.bfloat16()) == 0


def test_torchs_product_runs_where_it_is_chosen():
    x, weight = torch.randn(1, 64), torch.randn(8, 64)
    with overridden(row_product=triton.TORCH), launching.recording() as launches:
        assert torch.equal(triton.linear(x, weight), x @ weight.T)
    assert launches == []


def test_torchs_product_runs_for_a_few_rows_until_they_are_measured():
    x, weight = torch.randn(8, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    with launching.recording() as launches:
        assert torch.equal(triton.linear(x, weight), x @ weight.T)
    assert launches == []


@pytest.mark.parametrize(
    ("outputs", "inputs", "default"),
    [
        (5120, 160, triton.SHORT),  # dt_proj
        (10240, 2560, triton.MIDDLE),  # in_proj
        (2560, 5120, triton.MIDDLE),  # out_proj
        (192, 5120, triton.LONG),  # x_proj
        (16384, 4096, triton.LONG),
        (4096, 8192, triton.LONG),
    ],
)
def test_the_default_suits_the_matrix(outputs, inputs, default):
    sizes = triton.candidates(outputs, inputs)
    keys = [tuple(config.items()) for config in sizes]
    assert sizes[0] == default
    assert triton.TORCH in sizes
    assert len(set(keys)) == len(keys) <= 16


def test_early_starts_are_asked_for_where_they_can_be(monkeypatch):
    monkeypatch.delenv(launching.EARLY_VARIABLE, raising=False)
    monkeypatch.setattr(launching, "_capability", lambda: 90)
    monkeypatch.setattr(launching, "is_interpreting", lambda: True)
    assert launching.early() == {"EARLY": False}
    monkeypatch.setattr(launching, "is_interpreting", lambda: False)
    for capability, expected in ((89, False), (90, True), (0, False)):
        monkeypatch.setattr(launching, "_capability", lambda capability=capability: capability)
        assert launching.early()["EARLY"] is expected
        assert launching.early().get("launch_pdl", False) is expected
    monkeypatch.setattr(launching, "_capability", lambda: 90)
    with launching.recording():
        assert launching.early() == {"EARLY": False}, "recorded for whichever GPU"
    monkeypatch.setenv(launching.EARLY_VARIABLE, "0")
    assert launching.early() == {"EARLY": False}
    monkeypatch.setenv(launching.EARLY_VARIABLE, "1")
    monkeypatch.setattr(launching, "_capability", lambda: 0)
    with launching.recording():
        assert launching.early() == {"EARLY": True, "launch_pdl": True}
        assert launching.early_in_slots() == {"EARLY": False}, "slots may be in use"
        with launching.slots_at_rest():
            assert launching.early_in_slots() == {"EARLY": True, "launch_pdl": True}
        assert launching.early_in_slots() == {"EARLY": False}
