"""Buffers of decode steps of one size, on device and host, and steps on their way."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sidewinder.engine.recorders import NOT_RECORDED, Recorded
from sidewinder.sampling.finite import check_drawn
from sidewinder.state.batch import PackedBatch, PageTables, Sequences

cuda: Any = torch.cuda
"""Its events carry no types."""

INTEGERS = ("token", "slot", "start", "top_k", "high_bits", "low_bits")
"""Columns of a bucket's integers; page numbers follow."""


@dataclass
class Bucket:
    """Buffers of one bucket, on host and device, and the results of its last replay.

    Attributes:
        integers: int64 `[size, 6 + n_pages]`: `INTEGERS`, then a hybrid's pages.
        numbers: float64 `[size, 3]`: temperature, min_p, top_p.
        hosts: what copies take and tokens come back to, used in turn: while one step runs, the next
            is started. Pinned on machines with a GPU.
        turn: which is the next.
        recorded: does a step, once it was recorded.
        logits: `[size, vocab_local]` of the last step.
        tokens: int64 `[size]`, drawn in it; `NOT_FINITE` marks a broken row.
    """

    integers: Tensor
    numbers: Tensor
    hosts: tuple["HostBuffers", ...]
    turn: int = 0
    recorded: Recorded = NOT_RECORDED
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))

    @staticmethod
    def of(size: int, n_pages: int, device: torch.device) -> "Bucket":
        pinned = device.type == "cuda"
        hosts = tuple(HostBuffers.of(size, len(INTEGERS) + n_pages, pinned) for _ in range(2))
        return Bucket(hosts[0].integers.to(device), hosts[0].numbers.to(device), hosts)

    def batch(self) -> PackedBatch:
        """A batch of one token per row; page tables are columns of the buffers, the rest is filled
        from them by each step."""
        (size, width), device = self.integers.shape, self.integers.device
        tables = None
        if width > len(INTEGERS):
            start = self.integers[:, INTEGERS.index("start")]
            tables = PageTables(self.integers[:, len(INTEGERS) :], start)
        slots = torch.empty(size, dtype=torch.int64, device=device)
        seqs = Sequences(
            cu_seqlens=torch.arange(size + 1, dtype=torch.int32, device=device),
            slots=slots,
            sources=slots,
            fresh=torch.empty(size, dtype=torch.bool, device=device),
            bounds=tuple(range(size + 1)),
            n_decodes=size,
        )
        token_ids = torch.empty(size, dtype=torch.int64, device=device)
        return PackedBatch(token_ids, seqs, starts=(), device_tables=tables)

    def fill(self, integers: list[list[int]], numbers: list[list[float]]) -> None:
        """Send a step's rows. The last step but one was waited for, so its copies are done."""
        self.turn = 1 - self.turn
        host = self.hosts[self.turn]
        host.integers.copy_(torch.tensor(integers, dtype=torch.int64))
        host.numbers.copy_(torch.tensor(numbers, dtype=torch.float64))
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
        """The first `n`, waited for.

        Raises:
            RuntimeError: if logits held NaN or infinity.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        tokens: list[int] = self.host[:n].tolist()
        check_drawn(tokens, range(n))
        return tokens


@dataclass(frozen=True)
class Started:
    """A step on its way.

    Attributes:
        logits: `[n, vocab_local]`, until the next step is started.
        drawing: its tokens; None if the host must draw them from the logits.
        n: sequences.
        calls: collectives in it.
    """

    logits: Tensor
    drawing: Drawing | None
    n: int
    calls: int
