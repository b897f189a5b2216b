"""Rotary positions on CPUs."""

import pytest
import torch
from native_cases import DTYPES, LEVELS, TOLERANCE, kernels_of
from rotary_cases import SIZES, assert_turned, copied, make_rotary

from sidewinder.ops import native_attention

TURN = (4, 2, 128, 64)


@LEVELS
@DTYPES
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_heads_turn_in_place(level, dtype, sizes):
    arguments = make_rotary(*sizes, dtype)
    before = copied(arguments)
    with kernels_of(level, threads=2):
        native_attention.rotary(**arguments)
    assert_turned(arguments, before, TOLERANCE[dtype])


@LEVELS
def test_cosines_and_sines_are_precise_at_every_position(level):
    """Within 1.2e-7, as much as rounding to float32 costs twice; all quarters of a turn."""
    positions = [*range(2000), *range(100_000, 102_000), *range(2**24 - 2000, 2**24)]
    arguments = make_rotary(1, 1, 64, 32, torch.float32, positions=positions)
    arguments["q"][..., :32], arguments["q"][..., 32:] = 1.0, 0.0
    with kernels_of(level, threads=2):
        native_attention.rotary(**arguments)
    angles = (torch.tensor(positions)[:, None].float() * arguments["frequencies"]).double()
    cos, sin = arguments["q"][:, 0, :32].double(), arguments["q"][:, 0, 32:].double()
    assert (cos - angles.cos()).abs().max() < 1.2e-7
    assert (sin - angles.sin()).abs().max() < 1.2e-7


@DTYPES
def test_levels_and_threads_give_the_same_bits(dtype):
    levels = LEVELS.args[1]
    results = []
    for level in levels:
        for threads in (1, 2):
            arguments = make_rotary(*TURN, dtype, positions=range(40_000, 40_200))
            with kernels_of(level, threads):
                native_attention.rotary(**arguments)
            results.append((arguments["q"].clone(), arguments["k"].clone()))
    for q, k in results[1:]:
        assert torch.equal(q, results[0][0])
        assert torch.equal(k, results[0][1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": torch.zeros(3, 2, 6)}, "k has shape"),
        ({"k": torch.zeros(2, 2, 4)}, "k has shape"),
        ({"q": torch.zeros(2, 6, 4).transpose(1, 2)}, "q is not contiguous"),
        ({"positions": torch.tensor([1])}, "positions has shape"),
        ({"positions": torch.tensor([1.0, 2.0])}, "positions is float32"),
        ({"frequencies": torch.ones(4)}, "one for every pair"),
        ({"frequencies": torch.ones(0)}, "one for every pair"),
        ({"frequencies": torch.ones(2).bfloat16()}, "frequencies is bfloat16"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {
        "q": torch.zeros(2, 4, 6), "k": torch.zeros(2, 2, 6), "positions": torch.tensor([1, 2]),
        "frequencies": torch.ones(3),
    }  # fmt: skip
    native_attention.rotary(**arguments)
    with pytest.raises(ValueError, match=message):
        native_attention.rotary(**arguments | changes)


def test_positions_may_be_a_column():
    """As in the buffers of a decode step of fixed shape."""
    arguments = make_rotary(*TURN, torch.float32)
    before = copied(arguments)
    arguments["positions"] = arguments["positions"].repeat_interleave(3).view(-1, 3)[:, 1]
    native_attention.rotary(**arguments)
    assert_turned(arguments, before, TOLERANCE[torch.float32])


def test_other_dtypes_are_torchs():
    arguments = make_rotary(*TURN, torch.float16)
    before = copied(arguments)
    native_attention.rotary(**arguments)
    assert_turned(arguments, before, 2**-11)
