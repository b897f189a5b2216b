"""Random packed batches and slot states for operator tests."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from sidewinder.state.batch import Sequences, pack

LENGTHS = st.lists(
    st.one_of(st.just(1), st.integers(1, 9), st.integers(1, 130)), min_size=1, max_size=5
)


@dataclass(frozen=True)
class Case:
    """A batch, and the generator that makes its tensors."""

    seqs: Sequences
    n_slots: int
    generator: torch.Generator

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(dtype)

    def strided(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random `shape`, as a column slice of a wider tensor whose other columns are NaN."""
        inner = int(torch.Size(shape[1:]).numel())
        wide = torch.full((shape[0], inner + 5), torch.nan, dtype=dtype)
        wide[:, 3 : 3 + inner] = self.randn(shape[0], inner, dtype=dtype)
        return wide[:, 3 : 3 + inner].view(shape)

    def state(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Slot states: NaN in slots that are fresh or not of this batch."""
        state = torch.full((self.n_slots, *shape), torch.nan, dtype=dtype)
        stale = self.seqs.slots[~self.seqs.fresh]
        state[stale] = self.randn(len(stale), *shape, dtype=dtype)
        return state


def columns_for(x: Tensor) -> Tensor:
    """Where a result of x's shape and dtype may go: columns of a wider tensor full of NaN."""
    wide = torch.full((x.shape[0], x.shape[1] + 5), torch.nan, dtype=x.dtype)
    return wide[:, 3:-2]


def assert_only_columns(out: Tensor) -> None:
    """Nothing was written beside what `columns_for` made."""
    wide = out.as_strided((out.shape[0], out.stride(0)), (out.stride(0), 1), 0)
    assert wide[:, :3].isnan().all(), "written before the columns"
    assert wide[:, -2:].isnan().all(), "written behind the columns"


def make_case(lengths: list[int], seed: int) -> Case:
    """Sequences of `lengths`, one-token ones first, in shuffled slots, about half of them fresh."""
    generator = torch.Generator().manual_seed(seed)
    lengths = sorted(lengths, key=lambda length: length > 1)
    n_slots = len(lengths) + 2
    slots = torch.randperm(n_slots, generator=generator)[: len(lengths)].tolist()
    starts = torch.randint(0, 2, (len(lengths),), generator=generator).tolist()
    batch = pack([[0] * length for length in lengths], slots, starts)
    return Case(batch.seqs, n_slots, generator)


def cut(case: Case, sequence: int, point: int) -> tuple[Sequences, Sequences]:
    """One sequence of the case as two consecutive batches, cut after `point` tokens."""
    start, stop = case.seqs.bounds[sequence : sequence + 2]
    slot = int(case.seqs.slots[sequence])
    first = pack([[0] * point], [slot], [0 if case.seqs.fresh[sequence] else 1])
    second = pack([[0] * (stop - start - point)], [slot], [1])
    return first.seqs, second.seqs


def assert_untouched(case: Case, state: Tensor) -> None:
    """Slots of other sequences are still poison; those of the batch hold numbers."""
    mine = torch.zeros(case.n_slots, dtype=torch.bool)
    mine[case.seqs.slots] = True
    assert state[mine].isfinite().all(), "a slot of the batch holds NaN"
    assert state[~mine].isnan().all(), "a slot outside the batch was written"
