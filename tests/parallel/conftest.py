"""Real ranks for tests: a pool that lives as long as the session, and one executor of its own."""

from collections.abc import Callable, Iterator

import pytest

from sidewinder.parallel.process_executor import ProcessExecutor

TOY = "rank_toys:build_toy"

Start = Callable[..., ProcessExecutor]


def start_toy(size: int, **options: object) -> ProcessExecutor:
    """Ranks that serve `rank_toys.Toy`; `model` and `timeout_s` may be given."""
    model = options.pop("model", None)
    return ProcessExecutor(size, TOY, {"name": "toy"}, model, **options)


@pytest.fixture(scope="session")
def pool() -> Iterator[Callable[[int], ProcessExecutor]]:
    """Executor by size, started at first use; for tests that leave it as they found it."""
    started: dict[int, ProcessExecutor] = {}

    def get(size: int) -> ProcessExecutor:
        if size not in started:
            started[size] = start_toy(size)
        return started[size]

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
