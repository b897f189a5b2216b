"""`sidewinder compile`: Triton's cache, filled on a machine without a GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import triton_cases
from compiled_ahead import step_launches

from sidewinder.cli import main
from sidewinder.cli.main import BAD_USAGE
from sidewinder.ops import ahead
from sidewinder.testing import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def facts(folder):
    """What a process that does not interpret finds; see `compiled_ahead.py`."""
    script = Path(triton_cases.__file__).with_name("compiled_ahead.py")
    left_out = ("TRITON_INTERPRET", "SIDEWINDER_EARLY_LAUNCH", "SIDEWINDER_OPS")
    environment = {name: v for name, v in os.environ.items() if name not in left_out}
    command = [sys.executable, str(script), str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_an_empty_folder_is_filled_once(facts):
    first, second = facts["compiled"]
    assert first["compiled"] > 20
    assert first["found"] == 0
    assert second == {"compiled": 0, "found": first["compiled"]}


def test_the_command_line_finds_them_too(facts, folder):
    said = facts["command"]
    assert said.pop("found") >= 5
    assert said == {"gpu": "h100", "capability": 90, "compiled": 0, "cache": str(folder.resolve())}


POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from sidewinder.ops import ahead
with ProcessPoolExecutor(1, get_context("spawn"), ahead._prepare, (90, sys.argv[1])) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_processes_that_compile_end_with_the_one_that_is_killed(tmp_path):
    command = [sys.executable, "-c", POOL, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        worker = int(owner.stdout.readline())
        owner.kill()
    deadline = time.monotonic() + 30
    while is_running(worker):
        assert time.monotonic() < deadline, "it was left behind"
        time.sleep(0.05)


def is_running(process):
    """Whether it is there, and not only waits for its parent to look."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("facts")
def test_it_holds_what_only_decode_steps_of_fixed_shape_launch(folder):
    """A hybrid's attention over pages, which steps without a graph leave to torch."""
    for kernel in ("attend_split", "join_splits"):
        assert list(folder.glob(f"*/{kernel}.cubin"))


@pytest.mark.usefixtures("facts")
@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("tokens", [1, 5])
def test_it_holds_what_a_step_launches(folder, family, tokens):
    launches = step_launches(family, tokens)
    launched = {each.kernel.fn.__name__ for each in launches}
    assert len(launched) >= 3
    assert launched <= {file.stem for file in folder.glob("*/*.cubin")}


def test_steps_on_real_tensors_launch_nothing_else(facts):
    assert facts["forgotten"] == [[]] * 2 * len(TINY)
    assert facts["forgotten of uneven ranks"] == [[], []], "ranks whose shares differ"
    assert facts["forgotten of integers"] == [[]] * 12
    products = ("integer_row_product", "integer_product")
    assert facts["bits"]["int8"] == {name: [8] for name in products}
    assert facts["bits"]["int4"] == {name: [4, 8] for name in products}, "the head is in int8"
    assert facts["forgotten of fixed shapes"] == [[]] * 4, "prompts in CUDA graphs"
    assert facts["forgotten of hybrids' fixed shapes"] == [[]] * 4
    assert facts["forgotten of drafts"] == [[]] * 9


def test_sums_with_the_codecs_that_are_asked_for(facts):
    assert facts["exact"] == []
    assert facts["two ranks"] == ["decode_normalise", "encode"]
    assert facts["three ranks"] == ["decode_normalise", "encode", "reduce"]


def test_kernels_are_those_of_the_gpu(facts):
    assert facts["early"]["a100"] == []
    assert "row_product" in facts["early"]["h100"]


def test_block_sizes_of_the_gpu_s_own_table_are_compiled_too(facts):
    assert 16 not in facts["tuned"]["a100"]
    assert facts["tuned"]["h100"] == sorted([*facts["tuned"]["a100"], 16])


def test_launches_that_differ_in_nothing_that_is_compiled_are_one(facts):
    assert facts["alike"] == [1, 6, 1]


def test_an_unknown_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(ahead, "is_interpreting", lambda: False)
    assert main(["compile", "mamba-130m", "--gpu", "voodoo2"]) == BAD_USAGE
    assert "'voodoo2' is unknown; known: a10, " in capsys.readouterr().err


def test_without_triton_there_is_one_clear_error(monkeypatch, capsys):
    monkeypatch.setattr(ahead, "is_installed", lambda: False)
    assert main(["compile", "mamba-130m", "--gpu", "h100"]) == BAD_USAGE
    assert "Triton is not installed" in capsys.readouterr().err


def test_the_interpreter_compiles_nothing(monkeypatch, capsys):
    monkeypatch.setattr(ahead, "is_interpreting", lambda: True)
    assert main(["compile", "mamba-130m", "--gpu", "h100"]) == BAD_USAGE
    assert "TRITON_INTERPRET" in capsys.readouterr().err
