"""A runner without a model, for tests that need real ranks."""

import os
import random
import signal
import sys
import time
import warnings
from collections import deque
from typing import Any

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import policy_of
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.parallel.group import TensorParallel

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def build_toy(engine: Any, model: Any, tp: TensorParallel, collectives: Collectives) -> "Toy":
    """`model` may hold "fail_rank" and "fail_with" to fail while starting."""
    if isinstance(model, dict) and model.get("fail_rank") in (tp.rank, "all"):
        raise model["fail_with"]
    return Toy(engine, tp, collectives)


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """What `rank` contributes; of mixed magnitudes, so that the order of a sum shows."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    values = torch.randn(shape, generator=generator) * 10 ** torch.randn(shape, generator=generator)
    return values.to(dtype)


class Toy:
    def __init__(self, engine: Any, tp: TensorParallel, collectives: Collectives) -> None:
        self.engine, self.tp, self.collectives = engine, tp, collectives

    def ping(self, *_: object) -> int:
        return self.tp.rank

    def warn(self, message: str) -> None:
        warnings.warn(message, stacklevel=1)

    def who(self) -> tuple[int, int, str, int]:
        return os.getpid(), self.tp.size, self.collectives.path, torch.get_num_threads()

    def same_everywhere(self, x: Tensor) -> bool:
        """Whether every rank holds the same bytes."""
        mine = x.contiguous().view(-1).view(torch.uint8)
        rows = self.collectives.all_gather(mine[None], [mine.numel()] * self.tp.size)
        return all(torch.equal(row, mine) for row in rows.view(self.tp.size, -1))

    def check_sum(self, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> bool:
        """All-reduce equals the sum in rank order, bit for bit, on every rank."""
        parts = [part(rank, shape, dtype, seed) for rank in range(self.tp.size)]
        reference = sum_in_rank_order(torch.stack(parts))
        result = self.collectives.all_reduce(parts[self.tp.rank].clone())
        assert result.dtype == dtype
        assert result.shape == shape
        assert torch.equal(result, reference), f"rank {self.tp.rank}: {shape} {dtype}"
        return self.same_everywhere(result)

    def check_delta(
        self, shape: tuple[int, ...], dtype: torch.dtype, seed: int, codec: str, expected: Tensor
    ) -> bool:
        """A quantised sum has the expected bits, on every rank."""
        quantised = QuantisedCollectives(self.collectives, policy_of(codec))
        mine = part(self.tp.rank, shape, dtype, seed)
        result = quantised.all_reduce_delta(mine, "layers.0.mixer.out_proj", 0)
        assert torch.equal(result, expected), f"rank {self.tp.rank}: {shape} {dtype} {codec}"
        return self.same_everywhere(result)

    def hammer_deltas(
        self, calls: int, cases: list[tuple[tuple[int, ...], torch.dtype, int, str, Tensor]]
    ) -> int:
        """Quantised sums of alternating shapes and codecs, up to three on their way; how many."""
        choose, flying, done = random.Random(7), deque[tuple[Any, Tensor]](), 0
        parts = [part(self.tp.rank, shape, dtype, seed) for shape, dtype, seed, *_ in cases]
        groups = {name: QuantisedCollectives(self.collectives, policy_of(name))
                  for name in {case[3] for case in cases}}  # fmt: skip
        for call in range(calls + 3):
            if call < calls:
                which = choose.randrange(len(cases))
                group, expected = groups[cases[which][3]], cases[which][4]
                pending = group.start_all_reduce_delta(parts[which].clone(), "site", 0)
                flying.append((pending, expected))
            while flying and (len(flying) > choose.randrange(4) or call >= calls):
                pending, expected = flying.popleft()
                assert torch.equal(pending.wait(), expected), f"rank {self.tp.rank}, call {done}"
                done += 1
        return done

    def check_started(self) -> bool:
        """Several results on their way, with other calls between; long and short ones."""
        size, rank = self.tp.size, self.tp.rank
        shapes = ((1, 7), (3, 400_000), (2, 64))
        parts = [[part(r, shape, torch.bfloat16, 11) for r in range(size)] for shape in shapes]
        for _ in range(4):
            sums = [self.collectives.start_all_reduce(these[rank].clone()) for these in parts]
            gathered = self.collectives.start_all_gather(parts[0][rank], [7] * size)
            rows = self.collectives.start_all_to_all(torch.full((size, 5), rank) * 10)
            assert (self.collectives.all_reduce(torch.ones(9)) == size).all()
            for these, pending in zip(parts, sums, strict=True):
                assert torch.equal(pending.wait(), sum_in_rank_order(torch.stack(these)))
            assert torch.equal(gathered.wait(), torch.cat(parts[0], dim=1))
            assert rows.wait()[:, 0].tolist() == [10 * r for r in range(size)]
        return True

    def check_gather(self, rows: int, sizes: list[int], dtype: torch.dtype) -> bool:
        parts = [part(rank, (rows, size), dtype, 7) for rank, size in enumerate(sizes)]
        result = self.collectives.all_gather(parts[self.tp.rank], sizes)
        assert torch.equal(result, torch.cat(parts, -1))
        return True

    def check_broadcast(self, root: int) -> bool:
        x = part(self.tp.rank, (5, 3), torch.bfloat16, 3)
        result = self.collectives.broadcast(x, root)
        assert torch.equal(result, part(root, (5, 3), torch.bfloat16, 3))
        self.collectives.barrier()
        return True

    def check_subgroup(self, partition: list[list[int]]) -> bool:
        group = self.collectives.subgroup(partition)
        mine = next(ranks for ranks in partition if self.tp.rank in ranks)
        x = torch.tensor([float(10**self.tp.rank)])
        assert group.all_reduce(x).item() == sum(10.0**rank for rank in mine)
        assert group.tp == TensorParallel(mine.index(self.tp.rank), len(mine))
        return True

    def raise_on(self, ranks: list[int], error: Exception) -> None:
        if self.tp.rank in ranks:
            raise error

    def raise_before_sum(self, ranks: list[int], error: Exception) -> None:
        self.raise_on(ranks, error)
        self.collectives.all_reduce(torch.ones(3))

    def sum_while_waiting(self, absent: int, absent_s: float) -> None:
        """All ranks but one wait in a collective."""
        if self.tp.rank == absent:
            time.sleep(absent_s)
        self.collectives.all_reduce(torch.ones(3))

    def kill(self, rank: int, how: int) -> None:
        if self.tp.rank == rank:
            os.kill(os.getpid(), how)
        self.collectives.all_reduce(torch.ones(3))

    def stop_without_collective(self, rank: int) -> int:
        if self.tp.rank == rank:
            os.kill(os.getpid(), signal.SIGSTOP)
        return self.tp.rank

    def leave(self, rank: int, status: int) -> None:
        if self.tp.rank == rank:
            sys.exit(status)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def echo(self, value: object) -> object:
        return value

    def unpicklable(self) -> object:
        return lambda: None

    def hammer(self, calls: int, seed: int) -> int:
        """Many calls of changing sizes and verbs, each checked; the number made."""
        choose = random.Random(seed)
        ranks = range(self.tp.size)
        for i in range(calls):
            n = choose.choice((1, 3, 64 * self.tp.size + 1, 1000, 5000, choose.randrange(20_000)))
            verb = choose.choice(("sum", "sum", "sum", "gather", "broadcast", "barrier"))
            mine = torch.full((n,), float(self.tp.rank + i % 50))
            if verb == "sum":
                expected = sum(rank + i % 50 for rank in ranks)
                assert (self.collectives.all_reduce(mine) == expected).all(), (i, n)
            elif verb == "gather":
                result = self.collectives.all_gather(mine, [n] * self.tp.size)
                assert result.view(-1, n)[:, -1].tolist() == [rank + i % 50 for rank in ranks]
            elif verb == "broadcast":
                assert (self.collectives.broadcast(mine, i % self.tp.size) == mine[0]).all()
                assert mine[0] == i % self.tp.size + i % 50
            else:
                self.collectives.barrier()
        return calls

    def gather_affinity(self) -> list[set[int]]:
        mine = torch.tensor([[core in os.sched_getaffinity(0) for core in range(1024)]])
        everyone = self.collectives.all_gather(mine, [1024] * self.tp.size)
        return [set(row.nonzero().view(-1).tolist()) for row in everyone.view(-1, 1024)]
