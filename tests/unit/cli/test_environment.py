"""A wrong SIDEWINDER_OPS or SIDEWINDER_ISA, which are read while modules are imported."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidewinder.cli.main import BAD_USAGE, INTERRUPTED, speak_utf8
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


@pytest.mark.parametrize("prompt", ["na\u00efve", b"caf\xe9"], ids=["text", "bytes"])
def test_texts_where_the_locale_is_c(prompt):
    """Without Python's UTF-8 mode, which C locales switch on."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [*MODULE, "generate", "models/mamba", "--prompt", prompt]
    short = ["--max-tokens", "2", "--threads", "1", "--json"]
    done = subprocess.run(
        [*command, *short], env=os.environ | plain, capture_output=True, timeout=120
    )
    if isinstance(prompt, bytes):
        assert done.returncode == BAD_USAGE
        assert b"not valid Unicode: '\\udce9' at character 3" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["prompt_tokens"] > 0


def test_texts_on_a_terminal_that_python_takes_for_ascii(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    speak_utf8()
    print("na\u00efve", flush=True)
    assert written.getvalue().decode() == "na\u00efve\n"
