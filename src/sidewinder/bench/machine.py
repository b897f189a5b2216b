"""What a result must say of the machine that made it."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

import torch

from sidewinder import __version__


def machine_info() -> dict[str, Any]:
    """Machine, versions, commit and date, for the head of a raw result."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sidewinder": __version__,
        "commit": _commit(),
    }


def interface_bytes(name: str) -> tuple[int, int]:
    """Bytes that a network interface has sent and received, headers included (Linux).

    Raises:
        ValueError: if this process's network namespace has no such interface.
    """
    with open("/proc/self/net/dev") as lines:
        for line in lines:
            interface, _, counters = line.partition(":")
            if interface.strip() == name:
                fields = counters.split()
                return int(fields[8]), int(fields[0])
    raise ValueError(f"there is no network interface {name} here")


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return answer.stdout.strip() or None
