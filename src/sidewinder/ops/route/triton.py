"""A router of experts on GPUs: logits of a few rows by a kernel, of more by torch's product, and a
kernel that chooses.

torch's product in float32 has to be given a copy of 16-bit rows, and neither it nor the copy starts
early or lets the next kernel do so: at batch 1 that takes longer than the bytes.
"""

import torch
from torch import Tensor

from sidewinder.model_config import RouterConfig
from sidewinder.ops.experts.matrices import FEW_ROWS
from sidewinder.ops.launching import early, launch, power_of_two
from sidewinder.ops.route import kernels, vectorized
from sidewinder.ops.route.reference import LEAST_SUM

MOST_INPUTS = 4096
"""That a program has at once."""


def route(
    x: Tensor, weight: Tensor, bias: Tensor | None, config: RouterConfig
) -> tuple[Tensor, Tensor]:
    """As `reference.route`; experts in groups are chosen by torch's own functions."""
    logits = _few_logits(x, weight) if len(x) <= FEW_ROWS else torch.mm(x.float(), weight.T)
    if config.n_groups > 1:
        return vectorized.choose(logits, bias, config)
    rows, n_experts = logits.shape
    shape = (rows, config.n_chosen)
    chosen = torch.empty(shape, dtype=torch.int32, device=x.device)
    shares = torch.empty(shape, dtype=torch.float32, device=x.device)
    launch(
        kernels.choose_experts,
        (rows,),
        logits, bias, chosen, shares, n_experts, float(config.scale), LEAST_SUM,
        CHOSEN=config.n_chosen, SOFTMAX=config.scores == "softmax", NORMALISED=config.normalised,
        BLOCK_E=power_of_two(n_experts), BLOCK_K=power_of_two(config.n_chosen), num_warps=1,
        **early(),
    )  # fmt: skip
    return chosen, shares


def _few_logits(x: Tensor, weight: Tensor) -> Tensor:
    """float32 `[T, E]`."""
    assert x.stride(1) == weight.stride(1) == 1, "rows are contiguous"
    (rows, inputs), n_experts = x.shape, len(weight)
    logits = torch.empty(rows, n_experts, dtype=torch.float32, device=x.device)
    launch(
        kernels.score_experts,
        (n_experts, rows),
        x, x.stride(0), weight, weight.stride(0), logits, inputs,
        BLOCK_I=power_of_two(inputs, most=MOST_INPUTS), num_warps=4, **early(),
    )  # fmt: skip
    return logits
