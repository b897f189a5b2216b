"""Mixtures of experts: a router's choice, and the experts, at the sizes of granite-4.0-h-tiny."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from gpu_checks.case import Case, integer_weight, normal
from gpu_checks.context import Context
from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.ops.experts import experts
from sidewinder.ops.experts.matrices import ExpertMatrices
from sidewinder.ops.route import route
from sidewinder.quantise import BITS, rounded_bytes


def expert_cases(context: Context) -> Iterator[Case]:
    """Single rows, a batch of them, and a prompt. The projection has no constants for them."""
    for rows in (1, context.pick(32, 2), context.pick(2048, 24)):
        yield from of_rows(context, rows)
        for bits in BITS.values():
            yield from of_rows(context, rows, bits)


def of_rows(context: Context, rows: int, bits: int | None = None) -> Iterator[Case]:
    config = parse_model_config(SHAPES["granite-4.0-h-tiny"])
    assert config.experts is not None
    n, router = config.experts.n_experts, config.experts.router
    d, d_ff = context.pick(config.d_model, 32), context.pick(config.experts.d_ff, 16)
    item, k = context.dtype.itemsize, router.n_chosen

    def chosen_by() -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.randn(n, d, device=context.device)
        return normal(context, rows, d), weight

    def choose() -> Callable[[], object]:
        x, weight = chosen_by()
        return lambda: route(x, weight, None, router)

    def apply() -> Callable[[], object]:
        x, weight = chosen_by()
        chosen, shares = route(x, weight, None, router)
        new = partial(normal, context) if bits is None else partial(integer_weight, context, bits)
        gate, up, down = (
            tuple(new(*shape) for _ in range(n)) for shape in ((d_ff, d), (d_ff, d), (d, d_ff))
        )
        matrices = ExpertMatrices(gate, up, down)
        return lambda: experts(x, matrices, chosen, shares, "silu")

    read = n * (1 - (1 - k / n) ** rows)
    matrices = 3 * d * d_ff * item if bits is None else rounded_bytes((3 * d_ff, d), bits)
    moved = read * matrices + (2 * rows * d + 2 * rows * k * (d_ff + d)) * item
    flops = 2.0 * rows * k * 3 * d * d_ff
    if bits is None:
        yield Case("experts", f"route, {rows}", choose, rows * d * item + 4.0 * n * (d + rows))
    name = f"experts, {rows}" if bits is None else f"experts, int{bits}, {rows}"
    yield Case("experts", name, apply, moved, flops)
