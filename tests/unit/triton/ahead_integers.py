"""Products with weights in int8 and int4 at the shapes of published models, for `ahead.py`."""

import torch

from sidewinder.ops.linear import integer
from sidewinder.ops.linear.triton import linear
from sidewinder.ops.tuning import candidate
from sidewinder.quantise import QuantisedWeight, empty_weight


def in_int8(outputs: int, inputs: int, **_: object) -> QuantisedWeight:
    return empty_weight((outputs, inputs), "cpu", 8)


def in_int4(outputs: int, inputs: int, **_: object) -> QuantisedWeight:
    return empty_weight((outputs, inputs), "cpu", 4)


def integers_of(
    dtype: torch.dtype,
    bits: int,
    group: int | None = None,
    every: bool = False,
    numbers: tuple[int, ...] = (1, 32, 200, 600),
) -> None:
    """One row and more, of a wide matrix and of a narrow rank's; the defaults, or of the wide one
    every candidate."""
    for outputs, inputs in ((10240, 2560), (2560, 7424 // 4)):
        weight = empty_weight((outputs, inputs), "cpu", bits, group)
        bias = torch.empty(outputs, dtype=dtype)
        for rows in numbers:
            if rows == 1:
                found = integer.row_candidates(inputs, dtype, bits)
            else:
                found = integer.candidates(rows, outputs, dtype)
            for index in range(len(found) if every and outputs > inputs * 2 else 1):
                with candidate(index):
                    linear(torch.empty(rows, inputs, dtype=dtype), weight, bias)
