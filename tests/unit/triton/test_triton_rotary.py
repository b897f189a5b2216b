"""The Triton kernel of rotary positions."""

import pytest
import torch
from rotary_cases import SIZES, assert_turned, copied, make_rotary
from triton_cases import DTYPES, TOLERANCE, here, launching

from sidewinder.ops.rotary import triton


def turn(arguments):
    """The operator on the device under test, on its own memory; q and k as on the CPU after it."""
    given = {name: here(value) for name, value in arguments.items()}
    triton.rotary(**given)
    for name in "qk":
        wide = given[name].as_strided(
            (given[name].untyped_storage().nbytes() // given[name].itemsize,), (1,), 0
        )
        arguments[name].as_strided(wide.shape, (1,), 0).copy_(wide)


@DTYPES
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_heads_turn_in_place(dtype, sizes):
    arguments = make_rotary(*sizes, dtype)
    before = copied(arguments)
    turn(arguments)
    assert_turned(arguments, before, TOLERANCE[dtype])


def test_cosines_and_sines_are_precise_at_every_position():
    """Within 1.2e-7, as much as rounding to float32 costs twice; all quarters of a turn."""
    positions = [*range(40), *range(100_000, 100_040), *range(2**24 - 40, 2**24)]
    arguments = make_rotary(1, 1, 64, 32, torch.float32, positions=positions)
    arguments["q"][..., :32], arguments["q"][..., 32:] = 1.0, 0.0
    turn(arguments)
    angles = (torch.tensor(positions)[:, None].float() * arguments["frequencies"]).double()
    cos, sin = arguments["q"][:, 0, :32].double(), arguments["q"][:, 0, 32:].double()
    assert (cos - angles.cos()).abs().max() < 1.2e-7
    assert (sin - angles.sin()).abs().max() < 1.2e-7


def test_positions_may_be_a_column():
    """As in the buffers of a decode step's graph."""
    arguments = make_rotary(2, 1, 6, 3, torch.float32)
    before = copied(arguments)
    arguments["positions"] = arguments["positions"].repeat_interleave(3).view(-1, 3)[:, 1]
    assert arguments["positions"].stride() == (3,)
    turn(arguments)
    assert_turned(arguments, before, TOLERANCE[torch.float32])


def test_queries_and_keys_are_one_launch():
    arguments = {
        name: here(value) for name, value in make_rotary(32, 8, 128, 32, torch.bfloat16).items()
    }
    with launching.recording() as launches:
        triton.rotary(**arguments)
    assert [launch.grid for launch in launches] == [(7, 3, 1)]
