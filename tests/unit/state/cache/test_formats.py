"""Stored forms: what they take and how far they are off."""

import pytest
import torch

from sidewinder.state.cache.formats import decode, encode, stored_bytes
from sidewinder.state.pool import StateSnapshot
from sidewinder.testing import relative_error


def state(dtype=torch.float32, n=16):
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(-6, 3, 40)
    conv = torch.randn(3, 3, 40, generator=generator).to(dtype)
    ssm = torch.randn(3, n, 40, generator=generator) * scales
    ssm[1, :, 7] = 0
    return StateSnapshot(conv, ssm)


def test_auto_is_the_state_itself():
    found = decode(encode(state(), "auto"))
    assert torch.equal(found.ssm, state().ssm)
    assert torch.equal(found.conv, state().conv)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("int8", 2**-7)])
def test_errors_are_relative_to_each_channel(dtype, tolerance):
    found = decode(encode(state(), dtype))
    for channel in range(40):
        if found.ssm[..., channel].any():
            error = relative_error(found.ssm[0, :, channel], state().ssm[0, :, channel])
            assert error <= tolerance
    assert not found.ssm[1, :, 7].any()
    assert relative_error(found.conv, state().conv) <= 2**-8


@pytest.mark.parametrize("conv_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "int8"])
def test_bytes_are_known_before(dtype, conv_dtype):
    own = state(conv_dtype)
    held = sum(tensor.nbytes for tensor in encode(own, dtype).values())
    like = StateSnapshot(own.conv.to("meta"), own.ssm.to("meta"))
    assert stored_bytes(like, dtype) == held
    assert held <= {"auto": 1, "bfloat16": 0.56, "int8": 0.4}[dtype] * own.n_bytes
