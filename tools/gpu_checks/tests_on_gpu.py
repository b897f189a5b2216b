"""All GPU tests of the suite, by pytest; several at a time, since compiling takes longest."""

import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_checks import outcomes
from gpu_checks.context import Context
from gpu_checks.processes import Ended, run_for

PATHS = [
    "tests/unit/triton",
    *(
        f"tests/gpu/test_{name}.py"
        for name in (
            "shared_card",
            "prompt_graphs_on_card",
            "speculation_on_card",
            "decode_graphs",
            "engine_on_card",
            "parity_on_card",
        )
    ),
]
"""In this order: kernels first, of which all else consists. Together they may take longer than
there is; what they had seen is kept then."""
WITHOUT_A_CARD = ("ahead", "compile", "order")
"""Tests beside the kernels' that say the same on every machine, and compile for long."""
DRY_PATH = "tests/unit/engine/test_graphs.py"
WORKERS = max(2, (os.cpu_count() or 2) - 1)
STUCK_S = 60
"""A test that takes longer says where it is, on standard error."""
LEFT_S = 3.0
"""Kept back to read what was seen."""


def run(context: Context) -> dict[str, Any]:
    """What became of each test of `pytest -m gpu`; an `error` unless all passed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--tb=short", "-rfE"]
    command += ["-p", outcomes.__name__, "-o", f"faulthandler_timeout={STUCK_S}"]
    # Named: other tests need packages that a machine with a card may lack, and could not be read.
    command += [DRY_PATH] if context.dry_run else PATHS
    command += [f"--ignore=tests/unit/triton/test_triton_{name}.py" for name in WITHOUT_A_CARD]
    if not context.dry_run and find_spec("xdist") is not None:
        command += ["-n", str(WORKERS), "--dist", "loadgroup"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        file.touch()
        tools = str(Path(__file__).resolve().parents[1])
        paths = (tools, *filter(None, [os.environ.get("PYTHONPATH")]))
        os.environ |= {outcomes.VARIABLE: str(file), "PYTHONPATH": os.pathsep.join(paths)}
        ended = run_for(command, context.left() - LEFT_S)
        return result_of(ended, file.read_text().splitlines())


def result_of(ended: Ended, lines: list[str]) -> dict[str, Any]:
    """What pytest's exit status and output say, and the plugin's lines."""
    output = ended.out.strip()
    result: dict[str, Any] = {"returncode": ended.status, **outcomes.read(lines)}
    result["summary"] = output.splitlines()[-1] if output else ""
    if ended.status in (0, 5):  # 5: nothing selected
        return result
    if ended.status is None:
        result["summary"] = f"{len(result['tests'])} of {result['collected']} ended in time"
    result["error"] = f"pytest: {result['summary']}"
    result["tail"] = output[-3000:] + ended.err[-3000:]
    return result
