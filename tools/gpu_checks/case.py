"""One measurement of the suite's kernels, and what its tensors are made of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_checks.context import Context
from sidewinder.quantise import QuantisedWeight, empty_weight


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        kind: which efficiency of the projection it stands for.
        name: operator and load.
        make: makes new tensors, and returns what is to be timed.
        bytes, flops: what it must move and compute at least.
        special: exponentials and the like that our kernels take.
    """

    kind: str
    name: str
    make: Callable[[], Callable[[], object]]
    bytes: float
    flops: float = 0.0
    special: float = 0.0


def normal(context: Context, *shape: int) -> Tensor:
    return torch.randn(*shape, device=context.device, dtype=context.dtype)


def integer_weight(context: Context, bits: int, outputs: int, inputs: int) -> QuantisedWeight:
    """Random bytes, with scales that keep products of order one."""
    weight = empty_weight((outputs, inputs), context.device, bits)
    if not context.ahead:
        if bits == 8:
            weight.values.random_(-127, 128)
        else:
            weight.values.random_(0, 256)
        weight.scales.fill_(inputs**-0.5 * 2 ** (2 - bits))
    return weight
