"""Muon for hidden matrices, AdamW for everything else, and the learning-rate schedule."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of ``[count, rows, cols]`` by Newton-Schulz iteration."""
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = x.mT if matrices.shape[-2] > matrices.shape[-1] else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, one batched iteration per matrix shape.

    Parameters are ``[rows, cols]`` or stacks ``[heads, rows, cols]``.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[tuple(p.shape)].append(p)
            for shape, parameters in by_shape.items():
                updates = torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                updates = orthogonalise(updates.flatten(0, -3)).view_as(updates)
                scale = group["lr"] * max(1.0, shape[-2] / shape[-1]) ** 0.5
                for p, update in zip(parameters, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov-averaged gradient of one parameter."""
        assert p.grad is not None
        buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def optimizers(
    model: nn.Module, lr: float = 2.5e-3, muon_lr: float = 0.01
) -> list[torch.optim.Optimizer]:
    """[Muon over hidden matrices, AdamW over embeddings, convolutions, dt, A, D and norms]."""
    hidden: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        special = any(part in name for part in ("embed", "conv1d", "dt_proj", "A_log", "lm_head"))
        is_matrix = p.dim() >= 2 and not special and not name.endswith(".D")
        (hidden if is_matrix else other).append(p)
    adam = torch.optim.AdamW(other, lr=lr, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0)
    return [Muon(hidden, lr=muon_lr), adam]


def schedule(progress: float, warmup: float = 0.02, decay: float = 0.98) -> float:
    """Learning-rate factor at ``progress`` in [0, 1]: warm up, then fall linearly to zero."""
    return max(0.0, min(1.0, progress / warmup, (1 - progress) / decay))
