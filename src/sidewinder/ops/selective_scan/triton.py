"""Mamba-1's selective scan in Triton: by chunks of tokens, and one kernel for single tokens."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import (
    blocks,
    chunks_bound,
    early_in_slots,
    launch,
    multiprocessors,
    power_of_two,
)
from sidewinder.ops.selective_scan import kernels
from sidewinder.ops.selective_scan.chunks import MOST_REGISTERS, REGISTERS, WHOLE, chunk_sizes
from sidewinder.state.batch import Sequences

UPDATE: tuple[tuning.Config, ...] = tuple(
    {"block_d": block_d, "num_warps": warps}
    for block_d, warps in [(128, 2), (64, 1), (32, 1), (128, 4), (256, 4)]
)
UNCUT: tuple[tuning.Config, ...] = tuple(
    {"block_d": block_d, "num_warps": 1} for block_d in (64, 128)
)
"""Of sequences that are not cut. Few of them leave the card idle: narrow warps take less long."""
PASS_BLOCK, PASS_AHEAD = 128, 8
"""Channels of a program that passes states on, 4 a thread, and chunks that it asks for at once."""


def prefill_candidates(channels: int) -> tuple[tuning.Config, ...]:
    """Block sizes of prefill; see `chunks.chunk_sizes`."""
    return _prefill_candidates(channels, multiprocessors())


@cache
def _prefill_candidates(channels: int, multiprocessors: int) -> tuple[tuning.Config, ...]:
    return tuple(
        {"chunk": chunk, "block_d": block, "num_warps": 1}
        for chunk, block in chunk_sizes(channels, multiprocessors)
    )


@dataclass(frozen=True)
class _Arguments:
    """The operator's arguments and its output."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None
    dt_bias: Tensor | None
    state: Tensor
    seqs: Sequences
    y: Tensor

    @property
    def slots(self) -> tuple[object, ...]:
        """The state with its strides, as kernels take it."""
        return self.state, self.state.stride(0), self.state.stride(1)

    @property
    def fresh(self) -> Tensor:
        return self.seqs.fresh.view(torch.uint8)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
) -> Tensor:
    """As `reference.selective_scan`.

    A sequence's results do not depend on the batch around it: chunks start where sequences start.
    """
    for part in (x, dt, A, B, C, D, z, dt_bias, state):
        assert part is None or part.stride(-1) == 1, "the last dimension is contiguous"
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    arguments = _Arguments(x, dt, A, B, C, D, z, dt_bias, state, seqs, y)
    sizes = (x.dtype, state.dtype, *A.shape)
    if seqs.n_decodes:
        key = (*sizes, tuning.bucket(seqs.n_decodes))
        _update(arguments, tuning.choose(
            "scan_update", key, UPDATE, lambda config: _update(arguments, config), (state,)
        ))  # fmt: skip
    if seqs.n_seqs > seqs.n_decodes:
        key = (*sizes, tuning.bucket(seqs.n_tokens), tuning.bucket(seqs.n_seqs))
        name, candidates, run = "scan_prefill", prefill_candidates(A.shape[1]), _in_chunks
        if seqs.longest <= WHOLE:
            name, candidates, run = "scan_uncut", UNCUT, _uncut
        run(arguments, tuning.choose(
            name, key, candidates, lambda config: run(arguments, config), (state,)
        ))  # fmt: skip
    return y


def _update(a: _Arguments, config: tuning.Config) -> None:
    states, channels = a.A.shape
    launch(
        kernels.update,
        (a.seqs.n_decodes, blocks(channels, config["block_d"])),
        *_rows(a.x), *_rows(a.dt), *_rows(a.A), *_rows(a.B), *_rows(a.C), a.D, *_rows(a.z),
        a.dt_bias, *a.slots, a.seqs.slots, a.fresh, a.y, channels,
        STATES=states, BLOCK_N=power_of_two(states), **_block(config), **early_in_slots(),
    )  # fmt: skip


def _in_chunks(a: _Arguments, config: tuning.Config) -> None:
    states, channels = a.A.shape
    seqs, constants = a.seqs, _constants(a, config, config["chunk"])
    first, n_chunks = seqs.n_decodes, chunks_bound(seqs, config["chunk"])
    starts = torch.empty(n_chunks, states, channels, dtype=torch.float32, device=a.x.device)
    sums = torch.empty(n_chunks, channels, dtype=torch.float32, device=a.x.device)
    launch(
        kernels.chunk_ends,
        (n_chunks, blocks(channels, config["block_d"])),
        *_rows(a.x), *_rows(a.dt), *_rows(a.A), *_rows(a.B), a.dt_bias, seqs.cu_seqlens,
        starts, sums, channels, first, seqs.n_seqs, **constants,
    )  # fmt: skip
    shared = {name: constants[name] for name in ("STATES", "CHUNK", "BLOCK_S", "WHOLE")}
    launch(
        kernels.pass_states,
        (seqs.n_seqs - first, blocks(channels, PASS_BLOCK), states),
        *_rows(a.A), *a.slots, seqs.cu_seqlens, seqs.slots, a.fresh, starts, sums,
        channels, first, **shared, AHEAD=PASS_AHEAD, BLOCK_D=PASS_BLOCK, num_warps=1,
    )  # fmt: skip
    _finish(a, n_chunks, starts, constants)


def _uncut(a: _Arguments, config: tuning.Config) -> None:
    _finish(a, a.seqs.n_seqs - a.seqs.n_decodes, None, _constants(a, config, WHOLE))


def _finish(a: _Arguments, n_chunks: int, starts: Tensor | None, constants: dict[str, int]) -> None:
    seqs, channels = a.seqs, a.A.shape[1]
    launch(
        kernels.finish,
        (n_chunks, blocks(channels, constants["BLOCK_D"])),
        *_rows(a.x), *_rows(a.dt), *_rows(a.A), *_rows(a.B), *_rows(a.C), a.D, *_rows(a.z),
        a.dt_bias, *a.slots, seqs.cu_seqlens, seqs.slots, a.fresh, starts, a.y,
        channels, seqs.n_decodes, seqs.n_seqs, **constants,
    )  # fmt: skip


def _constants(a: _Arguments, config: tuning.Config, chunk: int) -> dict[str, int]:
    """Of `chunk_ends` and `finish`."""
    states = a.A.shape[0]
    return {
        "STATES": states,
        "CHUNK": chunk,
        "BLOCK_N": power_of_two(states),
        "BLOCK_S": power_of_two(a.seqs.n_seqs - a.seqs.n_decodes),
        "WHOLE": WHOLE,
        "maxnreg": REGISTERS.get(config["block_d"], MOST_REGISTERS),
        **_block(config),
    }


def _block(config: tuning.Config) -> dict[str, int]:
    """Channels of a program and of a thread."""
    block, warps = config["block_d"], config["num_warps"]
    return {"BLOCK_D": block, "EACH": max(1, block // (32 * warps)), "num_warps": warps}


def _rows(x: Tensor | None) -> tuple[Tensor | None, int]:
    """A tensor of rows and the distance between them, as kernels take it."""
    return (None, 0) if x is None else (x, x.stride(0))
