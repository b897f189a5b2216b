"""All GPU tests of the suite, by pytest; several at a time, since compiling takes longest."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from gpu_checks.context import Context

PATHS = ["tests/gpu", "tests/unit/triton"]
DRY_PATH = "tests/unit/engine/test_graphs.py"
WORKERS = max(2, (os.cpu_count() or 2) - 1)


def run(context: Context) -> dict[str, Any]:
    """Counts and failures of `pytest -m gpu`; an `error` unless all passed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--tb=short", "-rfE"]
    # Named: other tests need packages that a machine with a card may lack, and could not be read.
    command += [DRY_PATH] if context.dry_run else PATHS
    if not context.dry_run and find_spec("xdist") is not None:
        command += ["-n", str(WORKERS), "--dist", "loadgroup"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=context.budget_s, check=False
        )
    except subprocess.TimeoutExpired as late:
        out = late.stdout or b""
        text = out.decode(errors="replace") if isinstance(out, bytes) else out
        return {"error": f"not done after {context.budget_s:.0f} s", "tail": text[-3000:]}
    return result_of(done.returncode, done.stdout)


def result_of(status: int, output: str) -> dict[str, Any]:
    """What pytest's exit status and output say."""
    lines = output.strip().splitlines()
    summary = lines[-1] if lines else ""
    counts = {
        name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|error)", summary)
    }
    result: dict[str, Any] = {"returncode": status, "summary": summary, "counts": counts}
    if status not in (0, 5):  # 5: nothing selected
        result["error"] = f"pytest: {summary}"
        result["failed"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        result["tail"] = output[-6000:]
    return result
