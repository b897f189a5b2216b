"""A plugin of pytest: what became of each test, in a file, as soon as it is known.

A run that is ended, or that hangs, leaves what it had seen so far, and what was running.
"""

import json
import os
from typing import Any, TextIO

import pytest

VARIABLE = "SIDEWINDER_TEST_OUTCOMES"
"""Names the file: JSON lines, the event first."""
MOST_CHARACTERS = 1500
"""Of what a failing test said, the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Only where tests are given out: workers of pytest-xdist send their reports there."""
    file = os.environ.get(VARIABLE)
    if file and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(open(file, "a", buffering=1)))  # noqa: SIM115


class Outcomes:
    """Writes a line when tests are collected, and when one begins or ends."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._collected = 0

    def _write(self, *line: object) -> None:
        self._file.write(json.dumps(line) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._count(len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._count(len(ids))

    def _count(self, collected: int) -> None:
        if collected > self._collected:  # Every worker collects all.
            self._collected = collected
            self._write("collected", collected)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("begun", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        kind = report.outcome if report.when == "call" or report.skipped else "error"
        text = str(report.longrepr)[-MOST_CHARACTERS:] if report.failed else ""
        self._write("ended", report.nodeid, kind, round(report.duration, 2), text)


def read(lines: list[str]) -> dict[str, Any]:
    """Counts, the outcome and seconds of each test, what failing ones said, and what had begun but
    not ended."""
    tests: dict[str, tuple[str, float]] = {}
    failed, begun, collected = [], dict[str, None](), 0
    for event, *values in map(json.loads, lines):
        if event == "collected":
            collected = values[0]
        elif event == "begun":
            begun[values[0]] = None
        else:
            name, kind, seconds, text = values
            tests[name] = kind, seconds
            if text:
                failed.append({"test": name, "outcome": kind, "text": text})
    kinds = [kind for kind, _ in tests.values()]
    return {
        "collected": collected,
        "counts": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "failed": failed,
        "unfinished": [name for name in begun if name not in tests],
        "tests": tests,
    }
