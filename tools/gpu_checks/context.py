"""What every section gets: device, sizes, clock."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.config import ModelConfig
from sidewinder.testing import TINY

MODELS = ("mamba-2.8b", "falcon-mamba-7b", "zamba-7b", "mamba2-2.7b")
DRY_MODELS = {"mamba-2.8b": "mamba", "falcon-mamba-7b": "falcon_mamba", "zamba-7b": "zamba",
              "mamba2-2.7b": "mamba2"}  # fmt: skip


@dataclass(frozen=True)
class Context:
    """One section's circumstances.

    Attributes:
        dry_run: tiny shapes on the CPU: a test of the script, whose figures mean nothing.
        budget_s: what the section may take; it leaves out what no longer fits.
        started: when it began.
    """

    dry_run: bool
    budget_s: float
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry_run else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry_run else torch.bfloat16

    def left(self) -> float:
        """Seconds left."""
        return self.budget_s - (time.monotonic() - self.started)

    def has(self, seconds: float) -> bool:
        """Whether so much of the budget is left; in a dry run the clock does not count."""
        return self.dry_run or self.left() > seconds

    def values(self, model: str) -> dict[str, Any]:
        """config.json of a model; its tiny sister in a dry run."""
        values = TINY[DRY_MODELS[model]] if self.dry_run else SHAPES[model]
        return values | {"dtype": "float32" if self.dry_run else "bfloat16"}

    def config(self, model: str) -> ModelConfig:
        """The architecture of `values`."""
        return parse_model_config(self.values(model))

    def pick(self, real: int, dry: int) -> int:
        """A size: the real one, or the dry run's."""
        return dry if self.dry_run else real

    def seconds(self, run: Callable[[], object], repeats: int = 20) -> float:
        """Median time of `run`, on the device, after three to warm up."""
        for _ in range(3):
            run()
        return statistics.median(self._once(run) for _ in range(self.pick(repeats, 2)))

    def _once(self, run: Callable[[], object]) -> float:
        if self.device.type == "cpu":
            before = time.perf_counter()
            run()
            return time.perf_counter() - before
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e-3
