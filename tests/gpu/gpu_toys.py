"""A runner without a model, for ranks that share a card."""

from typing import Any

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import policy_of
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.engine.recorders import CudaRecorder
from sidewinder.parallel.group import TensorParallel

SHAPES = ((1,), (7,), (1, 2560), (32, 2560), (3, 5, 8))


def build_toy(_: Any, __: Any, tp: TensorParallel, collectives: Collectives) -> "Toy":
    return Toy(tp, collectives)


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(shape, generator=generator).to(dtype).cuda()


class Toy:
    def __init__(self, tp: TensorParallel, collectives: Collectives) -> None:
        self.tp, self.collectives = tp, collectives

    def path(self) -> str:
        return self.collectives.path

    def check_sums(self, dtype: torch.dtype) -> None:
        """Close to the definition, and the same bits on every rank."""
        for shape in SHAPES:
            parts = [part(rank, shape, dtype) for rank in range(self.tp.size)]
            reference = sum_in_rank_order(torch.stack(parts))
            for result in (
                self.collectives.all_reduce(parts[self.tp.rank].clone()),
                self.collectives.start_all_reduce(parts[self.tp.rank].clone()).wait(),
            ):
                tolerance = 1e-6 if dtype == torch.float32 else 0.05
                torch.testing.assert_close(result, reference, rtol=tolerance, atol=tolerance)
                self.check_same(result)

    def check_gathers(self) -> None:
        sizes = [4 + rank % 2 for rank in range(self.tp.size)]
        parts = [part(rank, (3, sizes[rank]), torch.bfloat16) for rank in range(self.tp.size)]
        gathered = self.collectives.all_gather(parts[self.tp.rank], sizes)
        assert torch.equal(gathered, torch.cat(parts, dim=-1))
        rows = [part(rank, (self.tp.size, 9), torch.float32) for rank in range(self.tp.size)]
        mine = self.collectives.all_to_all(rows[self.tp.rank])
        assert torch.equal(mine, torch.stack([each[self.tp.rank] for each in rows]))

    def check_codec(self, codec: str) -> None:
        """Quantised sums: near the exact one, and the same bits on every rank."""
        quantised = QuantisedCollectives(self.collectives, policy_of(codec))
        parts = [part(rank, (33, 2560), torch.bfloat16) for rank in range(self.tp.size)]
        reference = sum_in_rank_order(torch.stack(parts)).float()
        result = quantised.all_reduce_delta(parts[self.tp.rank].clone(), "site", 0)
        error = (result.float() - reference).norm() / reference.norm()
        assert error < {"int8": 0.02, "int6": 0.06, "int4": 0.25}[codec]
        self.check_same(result)

    def check_normed(self, codec: str) -> None:
        """Two quantised sums on their way, recorded and replayed: one is normed with a residual."""
        quantised = QuantisedCollectives(self.collectives, policy_of(codec))
        x, found = part(self.tp.rank, (40, 2560), torch.bfloat16), {}
        weight = torch.ones(2560, dtype=torch.bfloat16, device="cuda")
        residual = part(99, (40, 2560), torch.float32)

        def run() -> None:
            pending = [quantised.start_all_reduce_delta(x * n, "site", 0) for n in (1, 2)]
            found["sum"] = pending[0].wait()
            found["normed"], found["total"] = pending[1].normed(weight, 1e-5, residual)

        replay = CudaRecorder().record(run)
        for seed in range(20):
            x.copy_(part(10 * seed + self.tp.rank, (40, 2560), torch.bfloat16))
            replay()
            expected = quantised.all_reduce_delta(x.clone(), "site", 0)
            assert torch.equal(found["sum"], expected)
            # Twice the input has twice the scales, so twice the sum.
            assert torch.equal(found["total"], residual + 2 * expected.float())
            self.check_same(found["normed"])

    def check_graph(self) -> None:
        """A recorded sum, replayed with other numbers, many times."""
        x, found = torch.zeros(4, 2560, device="cuda"), {}
        replay = CudaRecorder().record(lambda: found.update(y=self.collectives.all_reduce(x * 1)))
        for number in range(100):
            x.fill_(number + self.tp.rank)
            replay()
            expected = self.tp.size * number + sum(range(self.tp.size))
            assert float(found["y"].min()) == float(found["y"].max()) == expected

    def check_same(self, x: Tensor) -> None:
        mine = x.contiguous().view(-1).view(torch.uint8)
        rows = self.collectives.all_gather(mine[None], [mine.numel()] * self.tp.size)
        assert all(torch.equal(row, mine) for row in rows.view(self.tp.size, -1))
