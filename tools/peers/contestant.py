"""One process that is measured: pinned to cores, kept between requests, asked in turn."""

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from peers.lines import MARK

TIMEOUT_S = 900.0
"""A contestant that has not answered by then is ended, and that is an error."""


class Contestant:
    """A process that answers measurement requests (`lines.serve`).

    Args:
        command: starts it.
        cores: cores that it may use, as taskset takes them ("0,1").
        env: environment variables to add.

    Attributes:
        about: what it said when it was ready.

    Raises:
        RuntimeError: here and from `ask`, if the process fails; shows what it printed last.
    """

    def __init__(self, command: Sequence[str], cores: str, env: Mapping[str, str] = {}) -> None:
        self.command = list(command)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - close() closes it
        threads = str(len(cores.split(",")))
        self._process = subprocess.Popen(
            ["taskset", "-c", cores, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads} | dict(env),
        )
        try:
            self.about = self._answer()
        except RuntimeError:
            self.close()
            raise

    def send(self, request: Mapping[str, Any]) -> None:
        """Give a request; `receive` has its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The answer to what was sent."""
        return self._answer()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send and receive."""
        self.send(request)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith(MARK):
                    return dict(json.loads(line.removeprefix(MARK)))
        finally:
            timer.cancel()
        self._errors.seek(0)
        raise RuntimeError(f"{' '.join(self.command)} ended:\n{self._errors.read()[-3000:]}")


class Together:
    """Contestants that answer at the same time; their figures are added.

    Args:
        members: of one kind, on cores of their own.
    """

    def __init__(self, members: Sequence[Contestant]) -> None:
        self._members = list(members)
        self.about = members[0].about

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send to all, then add the numbers that they answer."""
        for member in self._members:
            member.send(request)
        answers = [member.receive() for member in self._members]
        return {name: sum(answer[name] for answer in answers) for name in answers[0]}

    def close(self) -> None:
        """End all."""
        for member in self._members:
            member.close()
