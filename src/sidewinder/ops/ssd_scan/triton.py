"""Mamba-2's scan in Triton: matrix products over chunks of tokens; one kernel for single tokens."""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import (
    blocks,
    chunks_bound,
    early_in_slots,
    launch,
    power_of_two,
    single_places,
)
from sidewinder.ops.ssd_scan import chain_kernels, kernels
from sidewinder.state.batch import Sequences

PREFILL: tuple[tuning.Config, ...] = tuple(
    {
        "chunk": chunk,
        "block_t": block_t,
        "block_n": block_n,
        "block_p": 64,
        "num_warps": warps,
        "num_stages": stages,
    }
    for chunk in (128, 256)
    for block_t, block_n, warps, stages in [
        (64, 128, 4, 2),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (64, 32, 4, 3),
        (64, 64, 8, 3),
        (128, 64, 8, 2),
    ]
)
PREFILL_FLOAT32: tuple[tuning.Config, ...] = tuple(
    {
        "chunk": chunk,
        "block_t": 32,
        "block_n": 32,
        "block_p": block_p,
        "num_warps": 4,
        "num_stages": 3,
    }
    for chunk in (256, 128)
    for block_p in (32, 64)
)
"""Without matrix units, larger tiles do not fit a thread's registers."""
UPDATE: tuple[tuning.Config, ...] = tuple(
    {"block_p": block_p, "num_warps": warps}
    for block_p, warps in [(64, 4), (32, 4), (16, 2), (64, 8)]
)
PASS_BLOCK, PASS_AHEAD = 512, 4
STEP_HEADS = 8


@dataclass(frozen=True)
class _Arguments:
    """The operator's arguments and its output."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor
    state: Tensor
    seqs: Sequences
    dt_limit: tuple[float, float]
    head_group: Tensor
    y: Tensor

    @property
    def fresh(self) -> Tensor:
        return self.seqs.fresh.view(torch.uint8)

    @property
    def operand(self) -> object:
        """The dtype of what matrix units multiply."""
        return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(
            self.x.dtype, tl.float32
        )


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    seqs: Sequences,
    dt_limit: tuple[float, float],
    head_group: Tensor,
) -> Tensor:
    """As `reference.ssd_scan`; chunks start where sequences start."""
    for part in (x, B, C):
        assert part[0].is_contiguous(), "rows are contiguous"
    assert dt.stride(1) == 1, "rows are contiguous"
    assert state[0].is_contiguous(), "slots are contiguous"
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    arguments = _Arguments(x, dt, A, B, C, D, dt_bias, state, seqs, dt_limit, head_group, y)
    sizes = (x.dtype, state.dtype, *state.shape[1:])
    assert not seqs.waves, "drafts come in chains"
    if seqs.n_decodes:
        key = (*sizes, tuning.bucket(seqs.n_chains))
        name = "ssd_update" if seqs.chains is None else "ssd_chains"
        _update(arguments, tuning.choose(
            name, key, UPDATE, lambda config: _update(arguments, config), (state,)
        ))  # fmt: skip
    if seqs.n_seqs > seqs.n_decodes:
        key = (*sizes, tuning.bucket(seqs.n_tokens), tuning.bucket(seqs.n_seqs))
        candidates = PREFILL_FLOAT32 if x.dtype == torch.float32 else PREFILL
        _prefill(arguments, tuning.choose(
            "ssd_wide", key, candidates, lambda config: _prefill(arguments, config), (state,)
        ))  # fmt: skip
    return y


def _update(a: _Arguments, config: tuning.Config) -> None:
    heads, states, width = a.state.shape[1:]
    block_p = power_of_two(width, most=config["block_p"])
    launch(
        kernels.update if a.seqs.chains is None else chain_kernels.update_chains,
        (a.seqs.n_chains, heads, blocks(width, block_p)),
        *_rows(a.x), *_rows(a.dt), a.A, *_rows(a.B), *_rows(a.C), a.D, a.dt_bias, a.head_group,
        *_rows(a.state), *single_places(a.seqs), a.y, *a.dt_limit, heads, width, states,
        BLOCK_N=power_of_two(states), BLOCK_P=block_p, num_warps=config["num_warps"],
        **early_in_slots(),
    )  # fmt: skip


def _prefill(a: _Arguments, config: tuning.Config) -> None:
    heads, states, width = a.state.shape[1:]
    seqs, chunk = a.seqs, config["chunk"]
    first, n_chunks, device = seqs.n_decodes, chunks_bound(seqs, chunk), a.x.device
    fixed = {"CHUNK": chunk, "BLOCK_S": power_of_two(seqs.n_seqs - first)}
    deltas = torch.empty(n_chunks, heads, chunk, dtype=torch.float32, device=device)
    sums = torch.empty_like(deltas)
    launch(
        kernels.steps,
        (n_chunks, blocks(heads, STEP_HEADS)),
        *_rows(a.dt), a.A, a.dt_bias, seqs.cu_seqlens, deltas, sums, *a.dt_limit,
        heads, first, seqs.n_seqs, BLOCK_H=STEP_HEADS, **fixed,
    )  # fmt: skip
    block_n = power_of_two(states, least=16, most=config["block_n"])
    block_p = power_of_two(width, least=16, most=config["block_p"])
    p_blocks = blocks(width, block_p)
    tile = {
        **fixed,
        "DOT": a.operand,
        "BLOCK_T": config["block_t"],
        "BLOCK_N": block_n,
        "BLOCK_P": block_p,
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
    }
    added = torch.empty(n_chunks, heads, states, width, dtype=torch.float32, device=device)
    launch(
        kernels.chunk_states,
        (n_chunks * heads, blocks(states, block_n) * p_blocks),
        *_rows(a.x), *_rows(a.B), a.head_group, seqs.cu_seqlens, deltas, sums, added,
        heads, width, states, first, seqs.n_seqs, **tile,
    )  # fmt: skip
    # Kept in the dtype in which they are multiplied.
    starts = torch.empty(added.shape, dtype=a.x.dtype, device=device)
    launch(
        kernels.pass_states,
        (seqs.n_seqs - first, heads, blocks(states * width, PASS_BLOCK)),
        *_rows(a.state), seqs.cu_seqlens, seqs.slots, a.fresh, sums, added, starts,
        heads, states * width, first, AHEAD=PASS_AHEAD, BLOCK=PASS_BLOCK, **fixed,
    )  # fmt: skip
    groups, row_blocks = a.B.shape[1], chunk // config["block_t"]
    products = torch.empty(n_chunks, groups, chunk, chunk, dtype=torch.float32, device=device)
    launch(
        kernels.scores,
        (n_chunks * row_blocks, groups, row_blocks),
        *_rows(a.B), *_rows(a.C), seqs.cu_seqlens, products, groups, states, first, seqs.n_seqs,
        **{name: tile[name] for name in tile if name != "BLOCK_P"},
    )  # fmt: skip
    launch(
        kernels.outputs,
        (n_chunks * row_blocks * heads, p_blocks),
        *_rows(a.x), *_rows(a.C), a.D, a.head_group, seqs.cu_seqlens, deltas, sums, products,
        starts, a.y, heads, groups, width, states, first, seqs.n_seqs, **tile,
    )  # fmt: skip


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """A tensor and the distance between its rows (slots), as kernels take it."""
    return x, x.stride(0)
