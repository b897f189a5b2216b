"""Rotary positions: definition and torch's version against exact turns, also far into a text."""

import pytest
import torch
from rotary_cases import SIZES, assert_turned, copied, make_rotary

from sidewinder.ops.rotary import reference, vectorized

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize(
    "rotary", [reference.rotary, vectorized.rotary], ids=["reference", "torch"]
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_heads_turn_in_place(rotary, dtype, sizes):
    arguments = make_rotary(*sizes, dtype)
    before = copied(arguments)
    rotary(**arguments)
    assert_turned(arguments, before, TOLERANCE[dtype])
