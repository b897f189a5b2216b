"""What makes a step of fixed shape repeatable: CUDA graphs, or running it again."""

import logging
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


FULL = ("out of memory", "ALLOC_FAILED")
"""What the driver, Triton and cuBLAS say then; torch's own allocator has an error for it."""


class Recorder(Protocol):
    """Makes something repeatable."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What does the work of `run` again, on the same memory, each time it is called."""
        ...


class CudaRecorder:
    """Records CUDA graphs; they share memory, so only the last one replayed has valid results.

    Args:
        device: of the steps' tensors; "cuda" is the current GPU.
    """

    def __init__(self, device: str = "cuda") -> None:
        self._memory = cuda.graph_pool_handle()
        # One for all: torch keeps 32 MiB for cuBLAS on a Hopper for every stream that it ran on.
        self._warm_up = cuda.Stream()
        # torch takes no second graph into a pool whose first could not be recorded.
        self._smallest = self._captured(lambda: torch.zeros(1, device=device))

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        before = cuda.current_stream()
        try:
            self._warm_up.wait_stream(before)
            with cuda.stream(self._warm_up):
                for _ in range(WARM_UPS):
                    run()
            before.wait_stream(self._warm_up)
            cuda.synchronize()
            replay: Callable[[], None] = self._captured(run).replay
        except BaseException:
            # torch leaves its own stream the current one if a recording cannot even be ended, and
            # the warm-ups' kernels may still use what the caller is about to free.
            cuda.set_stream(before)
            cuda.synchronize()
            raise
        return replay

    def _captured(self, run: Callable[[], object]) -> Any:
        graph = cuda.CUDAGraph()
        # Other threads (NCCL's watchdog) go on asking the driver while this one records.
        with cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            run()
        return graph


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


class StepRecorder:
    """Records steps of one kind, as long as there is memory for it.

    Args:
        recorder: makes them repeatable.
        counter: of the model's collectives; is left as it was.
        n_ranks: that record the same steps.
        kind: of the steps, for the warning.
    """

    def __init__(self, recorder: Recorder, counter: CallCounter, n_ranks: int, kind: str) -> None:
        self.has_room = True
        self._recorder, self._counter = recorder, counter
        self._n_ranks, self._kind = n_ranks, kind

    def record(self, run: Callable[[], None], name: str) -> Recorded | None:
        """Record a step, whose inputs are padding while it is. None if there is no memory for it,
        or was none for another.

        Args:
            run: the step.
            name: for errors.

        Raises:
            RuntimeError: if it cannot be recorded; on one rank, not for want of memory.
        """
        if not self.has_room:
            return None
        try:
            return self._recorded(run, name)
        except NoMemoryError as error:
            if self._n_ranks > 1:
                raise  # All ranks would have to do without it.
            self.has_room = False
            logging.getLogger(__name__).warning(
                "%s; %s that have no graph yet run without one from here on", error, self._kind
            )
            return None

    def _recorded(self, run: Callable[[], None], name: str) -> Recorded:
        before = self._counter.calls
        try:
            run()  # Counts the collectives of a step.
            calls = self._counter.calls - before
            repeat = self._recorder.record(run)
        except RankFailure:
            raise
        except RuntimeError as error:
            kind = NoMemoryError if _wants_memory(error) else RuntimeError
            raise kind(
                f"{name} cannot be recorded as a CUDA graph ({error}); use cuda_graphs='off'"
            ) from error
        finally:
            self._counter.calls = before
        return Recorded(repeat, calls)


def _wants_memory(error: BaseException | None) -> bool:
    """Whether it is for want of memory, or came while such an error ended a recording."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in FULL):
            return True
        error = error.__context__
    return False
