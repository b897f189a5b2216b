"""Real ranks for tests: a pool that lives as long as the session, and one executor of its own."""

from collections.abc import Callable, Iterator

import pytest
import torch

from sidewinder.collectives.shared_memory import native
from sidewinder.parallel.launch import choose_transport
from sidewinder.parallel.process_executor import ProcessExecutor

TOY = "rank_toys:build_toy"

Start = Callable[..., ProcessExecutor]


def start_toy(size: int, **options: object) -> ProcessExecutor:
    """Ranks that serve `rank_toys.Toy`, over the transport that the engine would choose."""
    options.setdefault("transport", choose_transport(torch.device("cpu"), {}))
    return ProcessExecutor(size, TOY, {"name": "toy"}, options.pop("model", None), **options)


@pytest.fixture(scope="session")
def pool() -> Iterator[Start]:
    """Executor by size and transport, started at first use; for tests that leave it as it was."""
    started: dict[tuple[int, str], ProcessExecutor] = {}

    def get(size: int, transport: str = "gloo") -> ProcessExecutor:
        key = size, transport
        if key not in started:
            started[key] = start_toy(size, transport=transport)
        return started[key]

    yield get
    for executor in started.values():
        executor.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts executors that are closed at the test's end."""
    started: list[ProcessExecutor] = []

    def begin(size: int, **options: object) -> ProcessExecutor:
        started.append(start_toy(size, **options))
        return started[-1]

    yield begin
    for executor in started:
        executor.close()


@pytest.fixture(
    params=[
        "gloo",
        *(
            pytest.param(
                name, marks=pytest.mark.skipif(native is None, reason="native module not built")
            )
            for name in ("shared memory", "tcp")
        ),
    ]
)
def transport(request: pytest.FixtureRequest) -> str:
    """Every transport of CPU ranks."""
    return request.param
