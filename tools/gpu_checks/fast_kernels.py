"""mamba-ssm's own kernel beside ours, where that package is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from gpu_checks.context import PREFILL, Context

MODELS = ("mamba-2.8b", "falcon-mamba-7b")


def mamba_ssm_rows(context: Context) -> list[dict[str, Any]]:
    """Times of its selective scan over the same prompt; why not, where it cannot run."""
    rows = []
    for model in MODELS:
        row: dict[str, Any] = {
            "model": model, "kind": "peer", "case": "mamba_ssm selective_scan_fn, prefill"
        }  # fmt: skip
        if find_spec("mamba_ssm") is None:
            row["skipped"] = "mamba_ssm is not installed"
        elif not context.has(6):
            row["skipped"] = "out of time"
        else:
            try:
                row["seconds"] = context.eager_seconds(mamba_ssm_scan(context, model))
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return rows


def mamba_ssm_scan(context: Context, model: str) -> Callable[[], object]:
    """Its call with softplus, D, gate and last state; its layout is `[batch, channels, tokens]`."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    config, tokens = context.config(model), context.pick(PREFILL, 24)
    width, n = config.d_inner, config.d_state

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=context.device, dtype=context.dtype)

    u, delta, z = (normal(1, width, tokens) for _ in range(3))
    B, C = normal(1, n, tokens), normal(1, n, tokens)
    A, ones = -torch.rand(width, n, device=context.device), torch.ones(width, device=context.device)
    return lambda: selective_scan_fn(
        u, delta, A, B, C, ones, z=z, delta_bias=-ones, delta_softplus=True, return_last_state=True
    )
