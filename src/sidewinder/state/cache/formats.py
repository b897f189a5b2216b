"""How the ranks store kept states: as they are, or in fewer bits.

`auto` keeps every tensor in its own dtype. `bfloat16` rounds float32 tensors to 16 bits. `int8`
stores the SSM state as integers with one bfloat16 scale per channel (over that channel's `d_state`
entries, which one step updates together), and the rest as `bfloat16` does. Keys and values of
hybrids stay as they are: most of them are in pages that running sequences use.

Sources: rounding to nearest, symmetric, as in "LLM.int8()" (Dettmers et al. 2022), per channel.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sidewinder.state.pool import StateSnapshot

LARGEST = 127.0
"""Integers from -127 to 127, symmetric."""


def encode(state: StateSnapshot, dtype: str) -> dict[str, Tensor]:
    """The stored form of a state.

    Args:
        state: a copy of a slot; its tensors may become part of the result.
        dtype: "auto", "bfloat16" or "int8".

    Returns:
        `conv` `[n_layers, K-1, C]` and `ssm` `[n_layers, ..., N, D or P]`; with "int8" also
        `ssm_scale`, like `ssm` but for N = 1.
    """
    if dtype == "auto":
        return {"conv": state.conv, "ssm": state.ssm}
    conv = _to_16_bits(state.conv)
    if dtype == "bfloat16":
        return {"conv": conv, "ssm": _to_16_bits(state.ssm)}
    assert dtype == "int8", dtype
    values = state.ssm.float()
    scale = (values.abs().amax(dim=-2, keepdim=True) / LARGEST).bfloat16()
    # A channel of zeros has scale 0; any divisor gives its zeros.
    divisor = torch.where(scale == 0, 1.0, scale.float())
    integers = (values / divisor).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return {"conv": conv, "ssm": integers, "ssm_scale": scale}


def decode(tensors: Mapping[str, Tensor]) -> StateSnapshot:
    """The state of a stored form; `ssm` is float32 where it was stored in integers."""
    ssm = tensors["ssm"]
    if "ssm_scale" in tensors:
        ssm = ssm.float() * tensors["ssm_scale"].float()
    return StateSnapshot(tensors["conv"], ssm)


def stored_bytes(like: StateSnapshot, dtype: str) -> int:
    """Bytes of the stored form of states like this one; its tensors may be without data."""
    return sum(tensor.nbytes for tensor in encode(like, dtype).values())


def _to_16_bits(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
