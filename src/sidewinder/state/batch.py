"""A packed batch: the tokens of several sequences end to end, without padding."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Boundaries and slots of the sequences in a packed batch; what every operator needs.

    Attributes:
        cu_seqlens: int32 `[S+1]` on the device; sequence `s` holds the rows from `cu_seqlens[s]`
            up to `cu_seqlens[s+1]`.
        slots: int64 `[S]` on the device, the state slot of each sequence (all different).
        sources: int64 `[S]` on the device, the slot that each goes on from: its own, or one of an
            earlier single token, which it leaves as it is (drafts: `engine.drafts`).
        fresh: bool `[S]` on the device; True where the slot's content counts as zero.
        bounds: `cu_seqlens` as Python integers.
        n_decodes: number of leading sequences with exactly one token each, fresh or not.
        fixed_shape: the same object serves steps whose prompts differ in length. Where they begin
            is known to the device only; `bounds` gives all of their rows to the first of them, so
            that sizes that follow from it do for any lengths. Triton's kernels only.
        waves: where the leading single tokens are cut, if some go on from others of them: those of
            a part go on from earlier parts only.
        chains: in place of waves for Triton's kernels, int32 `[C + 1]` on the device: the single
            tokens from `chains[c]` up to `chains[c + 1]` lie side by side, the first one goes on
            from its own slot, and each of the others from the one before it. Some may be empty.
    """

    cu_seqlens: Tensor
    slots: Tensor
    sources: Tensor
    fresh: Tensor
    bounds: tuple[int, ...]
    n_decodes: int
    fixed_shape: bool = False
    waves: tuple[int, ...] = ()
    chains: Tensor | None = None

    @property
    def single_tokens(self) -> list[slice]:
        """The leading sequences of one token each, in parts that run one after another."""
        assert self.chains is None, "chains are for Triton's kernels"
        cuts = (0, *self.waves, self.n_decodes)
        return [slice(start, stop) for start, stop in pairwise(cuts) if start < stop]

    @property
    def n_chains(self) -> int:
        """How many chains the leading single tokens are in; without chains each is one."""
        return self.n_decodes if self.chains is None else len(self.chains) - 1

    @property
    def n_seqs(self) -> int:
        return len(self.bounds) - 1

    @property
    def n_tokens(self) -> int:
        return self.bounds[-1]

    @cached_property
    def prompt_lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence behind the leading ones of a single token."""
        return tuple(stop - start for start, stop in pairwise(self.bounds[self.n_decodes :]))


@dataclass(frozen=True)
class PageTables:
    """Page tables on the device: for steps whose shapes must not change.

    Attributes:
        pages: int64 `[S, P]`, the pages of each sequence; any page beyond its last.
        starts: int64 `[S]`, how many tokens it has stored; the new ones go behind them.
    """

    pages: Tensor
    starts: Tensor

    def places(self, page_size: int) -> Tensor:
        """int64 `[S, P * page_size]`, of each sequence the places that its pages hold."""
        position = torch.arange(self.pages.shape[1] * page_size, device=self.pages.device)
        return self.pages[:, position // page_size] * page_size + position % page_size


@dataclass(frozen=True)
class PackedBatch:
    """One step's input. Sequences of one token come first (see `Sequences.n_decodes`).

    Attributes:
        token_ids: int64 `[T]` on the device.
        seqs: boundaries, slots and freshness.
        starts: for each sequence, how many of its tokens are already in its state.
        page_tables: hybrids only; for each sequence the KV pages it holds, in order, enough for
            `starts[s] + length` tokens.
        device_tables: hybrids, in steps of a fixed shape: instead of `starts` and `page_tables`.
    """

    token_ids: Tensor
    seqs: Sequences
    starts: tuple[int, ...]
    page_tables: tuple[tuple[int, ...], ...] = field(default=())
    device_tables: PageTables | None = None


def pack(
    sequences: list[list[int]],
    slots: list[int],
    starts: list[int] | None = None,
    page_tables: list[list[int]] | None = None,
    device: torch.device | str = "cpu",
    sources: list[int] | None = None,
    waves: tuple[int, ...] = (),
    chains: tuple[int, ...] = (),
) -> PackedBatch:
    """Pack token lists into one batch, keeping their order.

    Args:
        sequences: token ids of each sequence's part of this step; none empty.
        slots: the state slot of each sequence, all different.
        starts: tokens already in each slot's state; 0 (the default) means fresh.
        page_tables: KV pages of each sequence (hybrids).
        device: where the tensors go.
        sources: the slot that each sequence goes on from; by default its own.
        waves: as `Sequences.waves`.
        chains: where those of `Sequences.chains` begin, and where the last one ends.
    """
    starts = [0] * len(sequences) if starts is None else starts
    assert len(sequences) == len(slots) == len(starts), "one slot and one start per sequence"
    assert all(sequences), "no empty sequences in a packed batch"
    assert len(set(slots)) == len(slots), "a slot appears twice in one step"
    bounds = [0]
    for tokens in sequences:
        bounds.append(bounds[-1] + len(tokens))
    n_decodes = 0
    while n_decodes < len(sequences) and len(sequences[n_decodes]) == 1:
        n_decodes += 1
    own = torch.tensor(slots, dtype=torch.int64, device=device)
    seqs = Sequences(
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=device),
        slots=own,
        sources=own if sources is None else torch.tensor(sources, dtype=torch.int64, device=device),
        fresh=torch.tensor([start == 0 for start in starts], device=device),
        bounds=tuple(bounds),
        n_decodes=n_decodes,
        waves=waves,
        chains=torch.tensor(chains, dtype=torch.int32, device=device) if chains else None,
    )
    flat = [token for tokens in sequences for token in tokens]
    return PackedBatch(
        token_ids=torch.tensor(flat, dtype=torch.int64, device=device),
        seqs=seqs,
        starts=tuple(starts),
        page_tables=tuple(tuple(table) for table in page_tables or []),
    )
