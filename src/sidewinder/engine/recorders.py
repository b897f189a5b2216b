"""What makes a step of fixed shape repeatable: CUDA graphs, or running it again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sidewinder.collectives.base import Collectives
from sidewinder.engine.counted import CallCounter
from sidewinder.ops.dispatch import runs_triton
from sidewinder.parallel.errors import RankFailure

cuda: Any = torch.cuda
"""Its streams and graphs carry no types."""

WARM_UPS = 2
"""Runs before a recording: kernels are tuned and workspaces allocated in them."""


class Recorder(Protocol):
    """Makes something repeatable."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What does the work of `run` again, on the same memory, each time it is called."""
        ...


class CudaRecorder:
    """Records CUDA graphs; they share memory, so only the last one replayed has valid results."""

    def __init__(self) -> None:
        self._memory = cuda.graph_pool_handle()
        # One for all: torch keeps 32 MiB for cuBLAS on a Hopper for every stream that it ran on.
        self._warm_up = cuda.Stream()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self._warm_up.wait_stream(cuda.current_stream())
        with cuda.stream(self._warm_up):
            for _ in range(WARM_UPS):
                run()
        cuda.current_stream().wait_stream(self._warm_up)
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        # Other threads (NCCL's watchdog) go on asking the driver while this one records.
        with cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            run()
        replay: Callable[[], None] = graph.replay
        return replay


class EagerRecorder:
    """Runs the step again instead: the same work without a GPU, for tests."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return run


def recorder_for(option: str, device: torch.device, collectives: Collectives) -> Recorder | None:
    """What records steps where the option `cuda_graphs`, device, transport and operators allow it:
    those that are not Triton's may read numbers on the host."""
    if option == "off" or device.type != "cuda" or not collectives.capturable:
        return None
    if not runs_triton(device):
        return None
    return CudaRecorder()


@dataclass(frozen=True)
class Spare:
    """What padding rows use: a slot, and in hybrids a KV page, that no sequence ever gets."""

    slot: int
    page: int = 0


@dataclass(frozen=True)
class Recorded:
    """A step that was recorded.

    Attributes:
        repeat: does it again.
        calls: collectives in it.
    """

    repeat: Callable[[], None]
    calls: int


def _not_recorded() -> None:
    raise AssertionError("the step was not recorded")


NOT_RECORDED = Recorded(_not_recorded, 0)


class NoMemoryError(RuntimeError):
    """There is too little memory on the GPU to record a step."""


def record_step(
    recorder: Recorder, counter: CallCounter, run: Callable[[], None], name: str
) -> Recorded:
    """Record `run`, whose inputs are padding while it is.

    Args:
        recorder: makes it repeatable.
        counter: of the model's collectives; is left as it was.
        run: the step.
        name: for the error.

    Raises:
        NoMemoryError: if memory is too small for it.
        RuntimeError: if it cannot be recorded for another reason.
    """
    before = counter.calls
    try:
        run()  # Counts the collectives of a step.
        calls = counter.calls - before
        repeat = recorder.record(run)
    except RankFailure:
        raise
    except RuntimeError as error:
        kind = NoMemoryError if _wants_memory(error) else RuntimeError
        raise kind(
            f"{name} cannot be recorded as a CUDA graph ({error}); use cuda_graphs='off'"
        ) from error
    finally:
        counter.calls = before
    return Recorded(repeat, calls)


def _wants_memory(error: BaseException | None) -> bool:
    """Whether it is torch's error for that, or came while that one ended a recording."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None
