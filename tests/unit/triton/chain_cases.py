"""Batches whose single tokens are in chains of drafts, and operators that run them."""

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from ops_cases import Case
from triton_cases import here, on_device

from sidewinder.ops.causal_conv1d import reference as conv_reference
from sidewinder.ops.causal_conv1d import triton as conv_triton
from sidewinder.ops.projected_scan import reference as projected_reference
from sidewinder.ops.projected_scan import triton as projected_triton
from sidewinder.ops.selective_scan import reference as scan_reference
from sidewinder.ops.selective_scan import triton as scan_triton
from sidewinder.ops.ssd_scan import reference as ssd_reference
from sidewinder.ops.ssd_scan import triton as ssd_triton
from sidewinder.state.batch import pack

SMALL = {
    "conv_update": {"block_c": 16},
    "conv_chains": {"block_c": 16},
    "scan_update": {"block_d": 16, "num_warps": 1},
    "scan_chains": {"block_d": 16, "num_warps": 1},
    "projected_scan": {"block_d": 16, "num_warps": 1},
    "projected_chains": {"block_d": 16, "num_warps": 1},
    "ssd_update": {"block_p": 4},
    "ssd_chains": {"block_p": 4},
    "conv_prefill": {"block_t": 8, "rows": 4, "block_c": 16},
    "scan_pipelined": {"chunk": 8, "block_d": 16},
    "ssd_wide": {"chunk": 32, "block_t": 16, "block_n": 16, "block_p": 16},
}


def make_chains(lengths, seed, prompts=(), n_padding=0, n_empty=0):
    """A case of chains of so many rows and then prompts, in shuffled slots.

    Chains of an even number begin fresh. Behind the last one padding goes on in one slot, and then
    come empty ones, as in graphs.
    """
    generator = torch.Generator().manual_seed(seed)
    n_rows = sum(lengths)
    n_slots = n_rows + len(prompts) + 3
    slots = torch.randperm(n_slots, generator=generator)[: n_rows + len(prompts) + 1].tolist()
    spare = slots.pop()
    firsts = list(accumulate(lengths, initial=0))[:-1]
    sources = [slots[row - (row not in firsts)] for row in range(len(slots))]
    sources[n_rows:] = slots[n_rows:]
    starts = [int(row not in firsts or firsts.index(row) % 2) for row in range(n_rows)]
    seqs = pack(
        [[0]] * n_rows + [[0] * length for length in prompts], slots, starts + [1] * len(prompts),
        sources=sources, chains=tuple(accumulate(lengths, initial=0)),
    ).seqs  # fmt: skip
    if n_padding:
        assert not prompts, "graphs have none beside drafts"
        rows = n_rows + n_padding
        seqs = replace(
            seqs,
            cu_seqlens=torch.arange(rows + 1, dtype=torch.int32),
            slots=torch.tensor([*slots, *[spare] * n_padding]),
            sources=torch.tensor([*sources, slots[-1], *[spare] * (n_padding - 1)]),
            fresh=torch.tensor([*(start == 0 for start in starts), *[False] * n_padding]),
            bounds=tuple(range(rows + 1)),
            n_decodes=rows,
        )
        seqs.chains[-1] = rows
    ends = seqs.chains[-1:].expand(n_empty)
    return Case(replace(seqs, chains=torch.cat([seqs.chains, ends])), n_slots, generator)


@dataclass(frozen=True)
class Operator:
    """An operator in Triton and its definition, with arguments of a case's size."""

    triton: object
    reference: object
    make: object
    state_shape: tuple[int, ...]

    def both(self, case, dtype, state_dtype, **options):
        """The arguments of a case, and its state before it."""
        arguments = self.make(case, dtype, **options)
        seqs = case.seqs
        state = torch.full((case.n_slots, *self.state_shape), torch.nan, dtype=state_dtype)
        read = ~seqs.fresh & (seqs.sources == seqs.slots)
        read[1:] &= seqs.slots[1:] != seqs.slots[:-1]  # but for padding
        state[seqs.slots[read]] = case.randn(int(read.sum()), *self.state_shape, dtype=state_dtype)
        return arguments, state

    def run(self, arguments, state, seqs):
        """By Triton, with poisoned outputs; the state's slots are written in place."""
        on_card = here(state)
        y = on_device(self.triton, **arguments, state=on_card, seqs=seqs)
        state.copy_(on_card.cpu())
        return y


CHANNELS, STATES = 21, 5
HEADS, GROUPS, WIDTH = 2, 2, 6
RANK = 7


def _conv(case, dtype, taps=4, biased=True, activation=True):
    return {
        "x": case.strided(case.seqs.n_tokens, CHANNELS, dtype=dtype),
        "weight": case.randn(taps, CHANNELS, dtype=dtype),
        "bias": case.randn(CHANNELS, dtype=dtype) if biased else None,
        "activation": activation,
    }


def _scan(case, dtype, gated=True, biased=True):
    tokens = case.seqs.n_tokens
    rows = {name: case.strided(tokens, CHANNELS, dtype=dtype) for name in ("x", "dt", "z")}
    rows |= {name: case.strided(tokens, STATES, dtype=dtype) for name in ("B", "C")}
    rows |= {"A": -torch.exp(case.strided(STATES, CHANNELS)), "D": case.randn(CHANNELS)}
    rows["dt_bias"] = case.randn(CHANNELS) - 2 if biased else None
    return rows if gated else rows | {"z": None}


def _projected(case, dtype, eps=None, weighted=False, gated=True):
    tokens, low = case.seqs.n_tokens, RANK + 2 * STATES
    return {
        "x": case.strided(tokens, CHANNELS, dtype=dtype),
        "low": case.strided(tokens, low, dtype=dtype),
        "dt_proj": case.randn(CHANNELS, RANK, dtype=dtype),
        "norm_eps": eps,
        "norm_weight": case.randn(low).to(dtype) if weighted else None,
        "A": -torch.exp(case.strided(STATES, CHANNELS)),
        "D": case.randn(CHANNELS),
        "z": case.strided(tokens, CHANNELS, dtype=dtype) if gated else None,
        "dt_bias": case.randn(CHANNELS) - 2,
    }


def _ssd(case, dtype, dt_limit=(0.0, float("inf"))):
    tokens = case.seqs.n_tokens
    return {
        "x": case.strided(tokens, HEADS, WIDTH, dtype=dtype),
        "dt": case.strided(tokens, HEADS, dtype=dtype),
        "A": -torch.exp(case.randn(HEADS)),
        "B": case.strided(tokens, GROUPS, STATES, dtype=dtype),
        "C": case.strided(tokens, GROUPS, STATES, dtype=dtype),
        "D": case.randn(HEADS),
        "dt_bias": case.randn(HEADS) - 2,
        "dt_limit": dt_limit,
        "head_group": torch.arange(HEADS) * GROUPS // HEADS,
    }


OPERATORS = {
    "conv": Operator(
        conv_triton.causal_conv1d, conv_reference.causal_conv1d, _conv, (3, CHANNELS)
    ),
    "scan": Operator(
        scan_triton.selective_scan, scan_reference.selective_scan, _scan, (STATES, CHANNELS)
    ),
    "projected": Operator(
        projected_triton.projected_scan, projected_reference.projected_scan, _projected,
        (STATES, CHANNELS),
    ),
    "ssd": Operator(ssd_triton.ssd_scan, ssd_reference.ssd_scan, _ssd, (HEADS, STATES, WIDTH)),
}  # fmt: skip
