"""What every section gets: device, sizes, clock."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_checks.processes import write_json
from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.config import ModelConfig
from sidewinder.testing import TINY

MODELS = ("mamba-2.8b", "falcon-mamba-7b", "zamba-7b", "mamba2-2.7b")
"""What figures are compared on, and the shards and the projection."""

HYBRIDS = ("zamba2-1.2b", "falcon-h1-1.5b", "jamba-reasoning-3b")
"""Families whose mixers or attention have other sizes; they come last, where there is time left."""

INTEGER_MODELS = MODELS[:2]
"""Those that are also run with int8 and int4 weights."""

PREFILL, DECODES = 8192, (1, 32)
"""Tokens of a step with a prompt; sequences of steps without."""

DRY_MODELS = {"mamba-2.8b": "mamba", "falcon-mamba-7b": "falcon_mamba", "zamba-7b": "zamba",
              "mamba2-2.7b": "mamba2", "zamba2-1.2b": "zamba2", "falcon-h1-1.5b": "falcon_h1",
              "jamba-reasoning-3b": "jamba"}  # fmt: skip

CACHE_BYTES, MOST_COPIES = 128e6, 48
"""More than a GPU's second-level cache holds; sets of tensors that are made for one timing."""


@dataclass(frozen=True)
class Context:
    """One section's circumstances.

    Attributes:
        dry_run: tiny shapes on the CPU: a test of the script, whose figures mean nothing.
        budget_s: what the section may take; it leaves out what no longer fits.
        started: when it began.
        ahead: tensors take no memory: what would be launched is recorded, for a card elsewhere.
        output: the file of the section's result, if it has one.
    """

    dry_run: bool
    budget_s: float
    started: float = field(default_factory=time.monotonic)
    ahead: bool = False
    output: Path | None = None

    @property
    def device(self) -> torch.device:
        if self.ahead:
            return torch.device("meta")
        return torch.device("cpu" if self.dry_run else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry_run else torch.bfloat16

    def keep(self, result: dict[str, Any]) -> None:
        """Leave what there is so far, for the case that the section never ends."""
        if self.output is not None:
            write_json(self.output, result)

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

    def seconds(self, *runs: Callable[[], object], repeats: int = 20) -> float:
        """Median time of a run, on the device. Several stand for one with other memory each, so
        that what is read does not lie in the caches from the last time.

        On a GPU all runs are recorded in a CUDA graph, so that launching them costs nothing.
        """
        whole = self._prepared(runs)
        for _ in range(self.pick(3, 1)):
            whole()
        times = [self._once(whole) for _ in range(self.pick(repeats, 2))]
        return statistics.median(times) / len(runs)

    def _prepared(self, runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
        def one_by_one() -> None:
            for run in runs:
                run()

        one_by_one()  # Compiles, allocates workspaces.
        if self.device.type == "cpu":
            return one_by_one
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            one_by_one()
        replay: Callable[[], object] = graph.replay
        return replay

    def eager_seconds(self, run: Callable[[], object], repeats: int = 20) -> float:
        """Median time of `run` as it is called, launches and waits included."""
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

    def copies(self, n_bytes: float) -> int:
        """How many sets of tensors of so many bytes together exceed any GPU's caches."""
        return self.pick(min(MOST_COPIES, math.ceil(CACHE_BYTES / max(n_bytes, 1.0)) + 1), 1)
