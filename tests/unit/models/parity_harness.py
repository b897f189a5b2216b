"""Runs our models the ways a server would, and checks them against the oracle's whole forward."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from sidewinder.checkpoint.reader import load_shard
from sidewinder.collectives.base import Collectives
from sidewinder.config import ModelConfig, load_model_config
from sidewinder.layers.overlap import PLAIN, Overlap
from sidewinder.models.base import Model
from sidewinder.models.registry import build_model
from sidewinder.parallel.group import TensorParallel
from sidewinder.state.batch import pack
from sidewinder.state.cache.pages import PagePool
from sidewinder.state.pool import StatePool
from sidewinder.testing import assert_close, run_ranks

TOLERANCE = 1e-4
N_SLOTS = 3
PAGE_SIZE = 8
DEVICE = "cpu"
"""Where the models run; `tests/gpu` sets another."""


@dataclass(frozen=True)
class Checkpoint:
    """A tiny checkpoint, its oracle's logits of some sequences, and what we read of it."""

    folder: Path
    config: ModelConfig
    sequences: list[list[int]]
    logits: list[Tensor]


def random_tokens(config_vocab: int, lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Sequences of random ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, config_vocab, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def oracle_logits(oracle: Any, sequences: list[list[int]]) -> list[Tensor]:
    """The oracle's whole, uncached forward of each sequence alone.

    Raises:
        RuntimeError: for an oracle that is known to be wrong: Mamba-2 with several groups before
            transformers 5.23 gave heads the wrong groups' B and C.
    """
    groups = getattr(oracle.config, "n_groups", 1)
    if oracle.config.model_type == "mamba2" and groups > 1:
        release = tuple(map(int, transformers.__version__.split(".")[:2]))
        if release < (5, 23):
            raise RuntimeError(
                f"transformers {transformers.__version__} computes Mamba-2 with {groups} groups "
                "wrongly: these tests need 5.23 or newer"
            )
    return [
        oracle(torch.tensor([tokens], dtype=torch.int64), use_cache=False).logits[0]
        for tokens in sequences
    ]


def make_checkpoint(folder: Path, oracle: Any, lengths: list[int]) -> Checkpoint:
    """Save the oracle's weights, and its logits of random sequences of `lengths`."""
    oracle.save_pretrained(folder)
    config = load_model_config(folder)
    sequences = random_tokens(config.vocab_size, lengths)
    return Checkpoint(folder, config, sequences, oracle_logits(oracle, sequences))


class Driver:
    """Feeds sequences through one rank's model step by step, in slots and pages of a small pool.

    Slots and pages that were given back are soon used again, poisoned as the runner does it.
    """

    def __init__(self, model: Model, longest: int, dtype: torch.dtype) -> None:
        self.model = model
        pages = N_SLOTS * (longest // PAGE_SIZE + 1)
        self.pool = StatePool(
            model.config,
            model.dims,
            N_SLOTS,
            dtype,
            DEVICE,
            n_pages=pages,
            page_size=PAGE_SIZE,
            poison=True,
        )
        self._slots = list(range(N_SLOTS))
        self._pages = PagePool(pages)

    def run(self, sequences: list[list[int]], chunks: list[int]) -> list[Tensor]:
        """Logits of every token; each sequence's next part is as long as the next of `chunks`.

        As many sequences as there are slots run at once, mixed in one batch; when one ends, the
        next takes its slot.
        """
        turn = 0
        waiting = list(enumerate(sequences))
        running: list[_Running] = []
        logits: list[list[Tensor]] = [[] for _ in sequences]
        while waiting or running:
            while waiting and len(running) < N_SLOTS:
                number, tokens = waiting.pop(0)
                running.append(_Running(number, tokens, self._slots.pop()))
            for sequence in running:
                sequence.size = min(chunks[turn % len(chunks)], sequence.left)
                turn += 1
            running.sort(key=lambda sequence: sequence.size > 1)
            for sequence, rows in zip(running, self._step(running), strict=True):
                logits[sequence.number].append(rows)
            running = [sequence for sequence in running if not self._ended(sequence)]
        return [torch.cat(rows) for rows in logits]

    def _step(self, running: list["_Running"]) -> tuple[Tensor, ...]:
        for sequence in running:
            if self.pool.kv:
                needed = -(-(sequence.done + sequence.size) // PAGE_SIZE)
                sequence.pages += self._pages.take(needed - len(sequence.pages))
            self.pool.poison_entered(sequence.slot, sequence.done, sequence.pages)
        batch = pack(
            [sequence.tokens[sequence.done :][: sequence.size] for sequence in running],
            [sequence.slot for sequence in running],
            [sequence.done for sequence in running],
            [sequence.pages for sequence in running],
            DEVICE,
        )
        logits = self.model.logits(self.model.forward(batch, self.pool)).cpu()
        return logits.split([sequence.size for sequence in running])

    def _ended(self, sequence: "_Running") -> bool:
        sequence.done += sequence.size
        if sequence.left:
            return False
        self._slots.append(sequence.slot)
        self._pages.release(sequence.pages)
        return True


class _Running:
    """A sequence in a slot."""

    def __init__(self, number: int, tokens: list[int], slot: int) -> None:
        self.number, self.tokens, self.slot = number, tokens, slot
        self.pages: list[int] = []
        self.done = self.size = 0

    @property
    def left(self) -> int:
        return len(self.tokens) - self.done


def run_sharded(
    checkpoint: Checkpoint,
    tp: int,
    chunks: list[int],
    sequences: list[list[int]] | None = None,
    dtype: torch.dtype = torch.float32,
    overlap: Overlap = PLAIN,
) -> list[Tensor]:
    """Logits of the checkpoint's sequences from all ranks together; checks that the ranks agree."""
    sequences = checkpoint.sequences if sequences is None else sequences

    def rank(group: TensorParallel, collectives: Collectives) -> list[Tensor]:
        weights = load_shard(checkpoint.folder, checkpoint.config, group, dtype, DEVICE)
        model = build_model(checkpoint.config, group, weights, collectives, overlap)
        return Driver(model, max(map(len, sequences)), dtype).run(sequences, chunks)

    first, *others = run_ranks(tp, rank)
    for other in others:
        assert all(map(torch.equal, first, other)), "ranks disagree"
    return first


def assert_parity(name: str, reference: Tensor, result: Tensor) -> None:
    """Logits within TOLERANCE; equal greedy tokens wherever the two best are not nearly tied."""
    assert_close(name, reference, result, TOLERANCE)
    best, second = reference.topk(2, dim=-1).values.unbind(-1)
    clear = best - second > 2 * TOLERANCE * reference.abs().max()
    assert clear.any(), f"{name}: only near-ties"
    same = reference.argmax(-1) == result.argmax(-1)
    assert same[clear].all(), f"{name}: greedy tokens differ"
