"""What the caller and a worker say to each other, pickled; each trusts only the other.

The worker says hello (an empty message) once it has imported everything, gets its `WorkerSetup`,
answers when the runner is built, and from then on answers calls until it gets the empty message.
"""

import pickle
import traceback
from dataclasses import dataclass
from typing import Any, Literal

from sidewinder.parallel.errors import NotFinite, RankError, RankFailure

Transport = Literal["shared memory", "tcp", "gloo", "symmetric memory", "nccl", "staged"]

EMPTY = b""
"""From the caller: stop. From a worker: done, nothing to return."""

KNOWN_ERRORS: tuple[type[Exception], ...] = (
    FileNotFoundError, PermissionError, OSError, ValueError, NotImplementedError, MemoryError,
    RankFailure, NotFinite,
)  # fmt: skip
"""Exceptions that come back as what they were; the first class that fits."""


@dataclass(frozen=True)
class WorkerSetup:
    """All that a worker must know.

    Attributes:
        rank, size: its place in the group.
        target: "module:function" that builds the runner from `(engine, model, tp, collectives)`.
        engine, model: passed to the target (`EngineConfig`, `ModelConfig`).
        transport: of the collectives; CPUs: "shared memory", "tcp", "gloo"; GPUs: "symmetric
            memory", "nccl", "staged".
        rendezvous: path of the file through which all but "shared memory" find each other.
        segment: file descriptor of the shared memory.
        device: the rank's device, "cpu" or "cuda:<index>".
        threads: CPU threads of this rank.
        cores: cores that only this rank may use; None if there are not enough.
        timeout_s: seconds after which a missing peer is an error.
    """

    rank: int
    size: int
    target: str
    engine: Any
    model: Any
    transport: Transport
    rendezvous: str
    segment: int
    device: str
    threads: int
    cores: tuple[int, ...] | None
    timeout_s: float


@dataclass(frozen=True)
class Raised:
    """An exception on its way to the caller, as text: exceptions themselves may not pickle."""

    kind: str
    message: str
    traceback: str

    @staticmethod
    def of(error: Exception) -> "Raised":
        kind = next((known for known in KNOWN_ERRORS if isinstance(error, known)), RankError)
        return Raised(kind.__name__, str(error), "".join(traceback.format_exception(error)))

    def error(self, rank: int, size: int) -> Exception:
        """The exception to raise in the caller."""
        origin = RankError(f"rank {rank} of {size} raised\n\n{self.traceback}")
        kind = {known.__name__: known for known in KNOWN_ERRORS}.get(self.kind)
        if kind is None:
            return origin
        error = kind(self.message)
        error.__cause__ = origin
        return error


def encode_call(method: str, args: tuple[object, ...]) -> bytes:
    return pickle.dumps((method, args), pickle.HIGHEST_PROTOCOL)


def encode_answer(result: object, wanted: bool) -> bytes:
    """The answer to a call; only rank 0's result is wanted."""
    return pickle.dumps(result, pickle.HIGHEST_PROTOCOL) if wanted else EMPTY


def decode(message: bytes | bytearray) -> Any:
    return pickle.loads(message) if message else None
