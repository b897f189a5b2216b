"""A wrong SIDEWINDER_OPS or SIDEWINDER_ISA, which are read while modules are imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidewinder.cli.main import BAD_USAGE, INTERRUPTED
from sidewinder.ops import native

INSTALLED = [str(Path(sys.executable).with_name("sidewinder"))]
MODULE = [sys.executable, "-m", "sidewinder"]

needs_native = pytest.mark.skipif(not native.is_available(), reason="native module not built")


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("SIDEWINDER_OPS", "cuda", "reference, torch, native, triton"),
        pytest.param("SIDEWINDER_ISA", "sse9", "portable", marks=needs_native),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        [*INSTALLED, "--version"],
        [*MODULE, "generate", "models/mamba", "--prompt", "a", "--tp", "2"],
    ],
    ids=["installed", "module"],
)
def test_a_wrong_variable_is_one_line(command, name, value, valid):
    done = subprocess.run(
        command, env=os.environ | {name: value}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == BAD_USAGE, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("sidewinder: error: ")
    assert name in line
    assert value in line
    assert valid in line


def test_the_command_works_as_a_module():
    done = subprocess.run([*MODULE, "--version"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("sidewinder ")


def test_ctrl_c_ends_the_command_while_torch_is_imported(tmp_path):
    """Also where what is imported swallows exceptions."""
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(1)\n"
        "except BaseException:\n    pass"
    )
    done = subprocess.run(
        [*MODULE, "--version"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (INTERRUPTED, "sidewinder: interrupted\n")
