"""A router of experts on GPUs: torch's product, and a kernel that chooses."""

import torch
from torch import Tensor

from sidewinder.model_config import RouterConfig
from sidewinder.ops.launching import launch, power_of_two
from sidewinder.ops.route import kernels, vectorized
from sidewinder.ops.route.reference import LEAST_SUM


def route(
    x: Tensor, weight: Tensor, bias: Tensor | None, config: RouterConfig
) -> tuple[Tensor, Tensor]:
    """As `reference.route`; experts in groups are chosen by torch's own functions."""
    logits = torch.mm(x.float(), weight.T)
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
    )  # fmt: skip
    return chosen, shares
