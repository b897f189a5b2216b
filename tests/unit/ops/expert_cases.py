"""Random experts, routers and rows for tests of their operators."""

from typing import Any

import torch
from ops_cases import make_case

from sidewinder.model_config import RouterConfig
from sidewinder.ops.experts.matrices import ExpertMatrices

ROUTERS = {
    "softmax": (7, RouterConfig(n_chosen=2)),
    "softmax-of-all": (5, RouterConfig(n_chosen=5, normalised=False)),
    "softmax-of-some": (16, RouterConfig(n_chosen=2, normalised=False)),
    "one": (1, RouterConfig(n_chosen=1)),
    "sigmoid": (33, RouterConfig(n_chosen=6, scores="sigmoid", has_bias=True, scale=2.5)),
    "groups": (
        12,
        RouterConfig(
            n_chosen=3, scores="sigmoid", has_bias=True, normalised=False, n_groups=4,
            n_groups_chosen=2,
        ),
    ),
}  # fmt: skip
"""By name: how many experts, and how they are chosen."""

SIZES = {
    "gated": (5, 2, 24, 18, True),
    "ungated": (9, 3, 33, 7, False),
    "one-of-one": (1, 1, 5, 1, True),
    "all": (3, 3, 70, 66, True),
}
"""By name: experts, how many a row has, width, inner width, gates."""


def router_arguments(name: str, rows: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `ops.route`."""
    n_experts, config = ROUTERS[name]
    case = make_case([1], seed=rows + width)
    return {
        "x": case.strided(rows, width, dtype=dtype),
        "weight": case.randn(n_experts, width),
        "bias": case.randn(n_experts) if config.has_bias else None,
        "config": config,
    }


def expert_arguments(name: str, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `ops.experts`; the first rows all choose alike."""
    n_experts, k, width, d_ff, gated = SIZES[name]
    case = make_case([1], seed=rows)

    def matrices(outputs: int, inputs: int) -> tuple[torch.Tensor, ...]:
        scale = inputs**-0.5
        return tuple((case.randn(outputs, inputs) * scale).to(dtype) for _ in range(n_experts))

    chosen = torch.stack(
        [torch.randperm(n_experts, generator=case.generator)[:k] for _ in range(rows)]
    ).int()
    chosen[: rows // 2] = chosen[0].clone()
    return {
        "x": case.strided(rows, width, dtype=dtype),
        "matrices": ExpertMatrices(
            matrices(d_ff, width) if gated else None, matrices(d_ff, width), matrices(width, d_ff)
        ),
        "chosen": chosen,
        "shares": case.randn(rows, k).abs(),
        "activation": "silu" if gated else "relu",
    }
