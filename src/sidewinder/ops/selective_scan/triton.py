"""Mamba-1's selective scan in Triton: by chunks of tokens, and one kernel for single tokens."""

from dataclasses import dataclass

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
    single_places,
)
from sidewinder.ops.selective_scan import chain_kernels, chunks, kernels
from sidewinder.state.batch import Sequences

UPDATE: tuple[tuning.Config, ...] = tuple(
    {"block_d": block_d, "num_warps": warps}
    for block_d, warps in [(128, 2), (64, 1), (32, 1), (128, 4), (256, 4)]
)
PASS_BLOCK, PASS_AHEAD = 128, 8
"""Channels of a program that passes states on, 4 a thread, and chunks that it asks for at once."""
ALIGNMENT = 8
"""Numbers of 16 bits in the widest load. Of itself Triton sees rows to be aligned only if they are
multiples of 16 numbers apart, and Zamba-7B's B and C are 264 apart."""


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
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.selective_scan`.

    A sequence's results depend on the batch around it only in rounding: how a step is cut follows
    from all of its sequences (`chunks.py`).
    """
    for part in (x, dt, A, B, C, D, z, dt_bias, state, out):
        assert part is None or part.stride(-1) == 1, "the last dimension is contiguous"
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    arguments = _Arguments(x, dt, A, B, C, D, z, dt_bias, state, seqs, y)
    sizes = (x.dtype, state.dtype, *A.shape)
    assert not seqs.waves, "drafts come in chains"
    if seqs.n_decodes:
        key = (*sizes, tuning.bucket(seqs.n_chains))
        name = "scan_update" if seqs.chains is None else "scan_chains"
        _update(arguments, tuning.choose(
            name, key, UPDATE, lambda config: _update(arguments, config), (state,)
        ))  # fmt: skip
    if seqs.n_seqs > seqs.n_decodes:
        key = (*sizes, tuning.bucket(seqs.n_tokens), tuning.bucket(seqs.n_seqs))
        lengths = seqs.prompt_lengths
        candidates = chunks.candidates(lengths, A.shape[1], multiprocessors())
        _prefill(arguments, tuning.choose(
            "scan_pipelined", key, candidates, lambda config: _prefill(arguments, config), (state,)
        ))  # fmt: skip
    return y


def _update(a: _Arguments, config: tuning.Config) -> None:
    (states, channels), unit = a.A.shape, _unit(a)
    (B, B_row), (C, C_row) = _rows(a.B), _rows(a.C)
    launch(
        kernels.update if a.seqs.chains is None else chain_kernels.update_chains,
        (a.seqs.n_chains, blocks(channels, config["block_d"])),
        *_rows(a.x), *_rows(a.dt), *_rows(a.A), B, B_row // unit, C, C_row // unit, a.D,
        *_rows(a.z), a.dt_bias, *a.slots, *single_places(a.seqs), *_rows(a.y), channels,
        STATES=states, UNIT=unit, BLOCK_N=power_of_two(states), **_block(config),
        **early_in_slots(),
    )  # fmt: skip


def _prefill(a: _Arguments, config: tuning.Config) -> None:
    seqs, channels, constants = a.seqs, a.A.shape[1], _constants(a, config)
    lengths = seqs.prompt_lengths
    # Only tests name a length.
    chunk = config.get("chunk") or chunks.chunk_of(config, lengths, channels, multiprocessors())
    n_chunks, starts = len(lengths), None
    if chunk < max(lengths):
        n_chunks = chunks_bound(seqs, chunk)
        starts = _starts(a, config, chunk, n_chunks)
    (B, B_row), (C, C_row) = _rows(a.B), _rows(a.C)
    launch(
        kernels.finish,
        (n_chunks, blocks(channels, config["block_d"])),
        *_rows(a.x), *_rows(a.dt), *_rows(a.A), B, B_row // constants["UNIT"],
        C, C_row // constants["UNIT"], a.D, *_rows(a.z), a.dt_bias, *a.slots, seqs.cu_seqlens,
        seqs.slots, a.fresh, starts, *_rows(a.y), channels, seqs.n_decodes, seqs.n_seqs, chunk,
        **constants,
    )  # fmt: skip


def _starts(a: _Arguments, config: tuning.Config, chunk: int, n_chunks: int) -> Tensor:
    """The states that chunks of so many tokens start from, `[chunks, N, D]`."""
    states, channels = a.A.shape
    seqs, first = a.seqs, a.seqs.n_decodes
    starts = torch.empty(n_chunks, states, channels, dtype=torch.float32, device=a.x.device)
    sums = torch.empty(n_chunks, channels, dtype=torch.float32, device=a.x.device)
    (B, B_row), constants = _rows(a.B), _constants(a, config)
    launch(
        kernels.chunk_ends,
        (n_chunks, blocks(channels, config["block_d"])),
        *_rows(a.x), *_rows(a.dt), *_rows(a.A), B, B_row // constants["UNIT"], a.dt_bias,
        seqs.cu_seqlens, starts, sums, channels, first, seqs.n_seqs, chunk, **constants,
    )  # fmt: skip
    launch(
        kernels.pass_states,
        (seqs.n_seqs - first, blocks(channels, PASS_BLOCK), states),
        *_rows(a.A), *a.slots, seqs.cu_seqlens, seqs.slots, a.fresh, starts, sums,
        channels, first, chunk, STATES=states, AHEAD=PASS_AHEAD, BLOCK_D=PASS_BLOCK,
        BLOCK_S=constants["BLOCK_S"], num_warps=1,
    )  # fmt: skip
    return starts


def _constants(a: _Arguments, config: tuning.Config) -> dict[str, int]:
    """Compile-time constants and options of `chunk_ends` and `finish`."""
    states, block = a.A.shape[0], config["block_d"]
    fitted = states <= chunks.FITTED_STATES
    return {
        "STATES": states,
        "UNIT": _unit(a),
        "BLOCK_N": power_of_two(states),
        "BLOCK_S": power_of_two(a.seqs.n_seqs - a.seqs.n_decodes),
        "maxnreg": chunks.REGISTERS.get(block, chunks.MOST_REGISTERS) if fitted
        else chunks.MOST_REGISTERS,
        **_block(config),
    }  # fmt: skip


def _unit(a: _Arguments) -> int:
    """In which the distances between rows of B and of C are given; see `ALIGNMENT`."""
    rows = a.B.stride(0), a.C.stride(0)
    aligned = all(row % ALIGNMENT == 0 for row in rows)
    return ALIGNMENT if aligned and any(row % 16 for row in rows) else 1


def _block(config: tuning.Config) -> dict[str, int]:
    """Channels of a program and of a thread."""
    block, warps = config["block_d"], config["num_warps"]
    return {"BLOCK_D": block, "EACH": max(1, block // (32 * warps)), "num_warps": warps}


def _rows(x: Tensor | None) -> tuple[Tensor | None, int]:
    """A tensor of rows and the distance between them, as kernels take it."""
    return (None, 0) if x is None else (x, x.stride(0))
