"""Buffers of decode steps of one size, on device and host, and steps on their way."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sidewinder.engine.decode_sizes import StepSize
from sidewinder.engine.recorders import NOT_RECORDED, Recorded
from sidewinder.state.batch import PackedBatch, PageTables, Sequences

cuda: Any = torch.cuda
"""Its events carry no types."""

INTEGERS = ("token", "slot", "start", "top_k", "high_bits", "low_bits", "chain_end")
"""Columns of a bucket's integers; page numbers follow. `chain_end` is of the chain with the row's
number, where there are chains."""
TOP_K, CHAIN_END = INTEGERS.index("top_k"), INTEGERS.index("chain_end")


@dataclass
class Bucket:
    """Buffers of one size, on host and device, and the results of its last replay.

    Attributes:
        size: what it has room for.
        integers: int64 `[rows, 7 + pages]`: `INTEGERS`, then a hybrid's pages.
        numbers: float64 `[rows, 3]`: temperature, min_p, top_p.
        hosts: what copies take and tokens come back to, used in turn: while one step runs, the next
            is started. Pinned on machines with a GPU.
        turn: which is the next.
        recorded: does a step, once it was recorded.
        logits: `[rows, vocab_local]` of the last step.
        tokens: int64 `[rows]`, drawn in it; `NOT_FINITE` marks a broken row.
    """

    size: StepSize
    integers: Tensor
    numbers: Tensor
    hosts: tuple["HostBuffers", ...]
    turn: int = 0
    recorded: Recorded = NOT_RECORDED
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))

    @staticmethod
    def of(size: StepSize, device: torch.device) -> "Bucket":
        pinned, width = device.type == "cuda", len(INTEGERS) + size.pages
        hosts = tuple(HostBuffers.of(size.rows, width, pinned) for _ in range(2))
        return Bucket(size, hosts[0].integers.to(device), hosts[0].numbers.to(device), hosts)

    def batch(self) -> PackedBatch:
        """A batch of one token per row; page tables are columns of the buffers, the rest is filled
        from them by each step."""
        rows, device = self.size.rows, self.integers.device
        tables = chains = None
        if self.size.pages:
            start = self.integers[:, INTEGERS.index("start")]
            tables = PageTables(self.integers[:, len(INTEGERS) :], start)
        if self.size.chains:
            chains = torch.zeros(self.size.chains + 1, dtype=torch.int32, device=device)
        slots = torch.empty(rows, dtype=torch.int64, device=device)
        seqs = Sequences(
            cu_seqlens=torch.arange(rows + 1, dtype=torch.int32, device=device),
            slots=slots,
            sources=slots,
            fresh=torch.empty(rows, dtype=torch.bool, device=device),
            bounds=tuple(range(rows + 1)),
            n_decodes=rows,
            chains=chains,
        )
        token_ids = torch.empty(rows, dtype=torch.int64, device=device)
        return PackedBatch(token_ids, seqs, starts=(), device_tables=tables)

    def fill(self, integers: list[list[int]], numbers: list[list[float]]) -> None:
        """Send a step's rows. The last step but one was waited for, so its copies are done."""
        self.turn = 1 - self.turn
        host = self.hosts[self.turn]
        # Into the same memory by numpy, which takes less time than torch for a few numbers.
        host.integers.numpy()[...] = integers
        host.numbers.numpy()[...] = numbers
        self.integers.copy_(host.integers, non_blocking=True)
        self.numbers.copy_(host.numbers, non_blocking=True)

    def send_back(self) -> "Drawing":
        """The tokens of the step that was just started, on their way to the host."""
        host = self.hosts[self.turn].tokens
        host.copy_(self.tokens, non_blocking=True)
        event = None
        if self.tokens.device.type == "cuda":
            event = cuda.Event()
            event.record()
        return Drawing(host, event)


@dataclass(frozen=True)
class HostBuffers:
    """One step's rows, and its tokens, in the host's memory; as of `Bucket`."""

    integers: Tensor
    numbers: Tensor
    tokens: Tensor

    @staticmethod
    def of(size: int, width: int, pinned: bool) -> "HostBuffers":
        return HostBuffers(
            torch.zeros(size, width, dtype=torch.int64, pin_memory=pinned),
            torch.zeros(size, 3, dtype=torch.float64, pin_memory=pinned),
            torch.zeros(size, dtype=torch.int64, pin_memory=pinned),
        )


@dataclass(frozen=True)
class Drawing:
    """Tokens that are being drawn; read them before the next step but one is started.

    Attributes:
        host: int64 `[size]`, where they arrive.
        arrived: the CUDA event after the copy; None on a CPU.
    """

    host: Tensor
    arrived: Any

    def tokens(self, n: int) -> list[int]:
        """The first `n`, waited for; `NOT_FINITE` where logits held NaN or infinity."""
        if self.arrived is not None:
            self.arrived.synchronize()
        tokens: list[int] = self.host[:n].tolist()
        return tokens


@dataclass(frozen=True)
class Started:
    """A step on its way.

    Attributes:
        logits: `[n, vocab_local]`, until the next step is started.
        drawing: its tokens; None if the host must draw them from the logits.
        n: rows.
        calls: collectives in it.
    """

    logits: Tensor
    drawing: Drawing | None
    n: int
    calls: int
