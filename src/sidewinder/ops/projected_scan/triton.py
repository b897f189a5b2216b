"""The selective scan from x_proj's output on: one kernel for a few single tokens, else by parts."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import (
    blocks,
    early_in_slots,
    launch,
    power_of_two,
    single_places,
)
from sidewinder.ops.projected_scan import chain_kernels, kernels, parts
from sidewinder.state.batch import Sequences

if TYPE_CHECKING:
    from sidewinder.layers.weights import Weight

CANDIDATES: tuple[tuning.Config, ...] = tuple(
    {"block_d": block_d, "num_warps": warps}
    for block_d, warps in [(16, 4), (16, 2), (32, 4), (64, 4), (64, 8), (32, 2)]
)


def projected_scan(
    x: Tensor,
    low: Tensor,
    dt_proj: "Weight",
    norm_eps: float | None,
    norm_weight: Tensor | None,
    A: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.projected_scan`."""
    # A chain's rows are one program's, which reads dt_proj's weight once.
    few = seqs.n_seqs == seqs.n_decodes and seqs.n_chains <= parts.MOST_FUSED and not seqs.waves
    if not few or not isinstance(dt_proj, Tensor):
        return parts.projected_scan(
            x, low, dt_proj, norm_eps, norm_weight, A, D, z, dt_bias, state, seqs, out
        )
    for part in (x, low, dt_proj, norm_weight, A, D, z, dt_bias, state, out):
        assert part is None or part.stride(-1) == 1, "the last dimension is contiguous"
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    (states, channels), rank = A.shape, dt_proj.shape[1]

    def run(config: tuning.Config) -> None:
        block, warps = config["block_d"], config["num_warps"]
        launch(
            kernels.update if seqs.chains is None else chain_kernels.update_chains,
            (seqs.n_chains, blocks(channels, block)),
            x, x.stride(0), low, low.stride(0), norm_weight, dt_proj, dt_proj.stride(0),
            A, A.stride(0), D, z, 0 if z is None else z.stride(0), dt_bias,
            state, state.stride(0), state.stride(1), *single_places(seqs),
            y, y.stride(0), channels, norm_eps or 0.0,
            RANK=rank, STATES=states, NORMED=norm_eps is not None, BLOCK_R=power_of_two(rank),
            BLOCK_N=power_of_two(states), BLOCK_D=block, EACH=max(1, block // (32 * warps)),
            num_warps=warps, **early_in_slots(),
        )  # fmt: skip

    sizes = (x.dtype, state.dtype, *A.shape, rank, seqs.n_chains)
    name = "projected_scan" if seqs.chains is None else "projected_chains"
    run(tuning.choose(name, sizes, CANDIDATES, run, (state,)))
    return y
