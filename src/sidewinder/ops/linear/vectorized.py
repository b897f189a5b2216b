"""Linear map by torch's matrix product."""

import torch.nn.functional as F
from torch import Tensor

from sidewinder.packing import PackedWeight
from sidewinder.quantise import QuantisedWeight


def linear(
    x: Tensor, weight: Tensor | QuantisedWeight | PackedWeight, bias: Tensor | None = None
) -> Tensor:
    """As `reference.linear`."""
    if isinstance(weight, PackedWeight):
        weight = weight.unpack()
    if isinstance(weight, QuantisedWeight):
        wide_bias = None if bias is None else bias.float()
        return F.linear(x.float(), weight.dequantise(), wide_bias).to(x.dtype)
    return F.linear(x, weight, bias)
