"""All GPU tests of the suite, by pytest."""

import subprocess
import sys
from typing import Any

from gpu_checks.context import Context

DRY_PATH = "tests/unit/engine/test_graphs.py"


def run(context: Context) -> dict[str, Any]:
    """Exit status and the last lines of `pytest -m gpu`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--maxfail=20"]
    if context.dry_run:
        command.append(DRY_PATH)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=context.budget_s, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, 5):  # 5: nothing selected
        raise RuntimeError("pytest failed:\n" + "\n".join(lines[-30:]))
    return {
        "returncode": done.returncode,
        "summary": lines[-1] if lines else "",
        "tail": lines[-8:],
    }
