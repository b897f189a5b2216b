"""What the GPU suite leaves when sections, or tests in them, fail, hang or are ended."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

TOOLS = Path(__file__).parents[3] / "tools"
sys.path.insert(0, str(TOOLS))

import gpu_suite  # noqa: E402
from gpu_checks import compile as compile_section  # noqa: E402
from gpu_checks import end_to_end, kernels, outcomes, sharing, tests_on_gpu  # noqa: E402
from gpu_checks.case import Case  # noqa: E402
from gpu_checks.context import Context  # noqa: E402
from gpu_checks.processes import Ended, run_for  # noqa: E402


def test_a_section_that_is_ended_leaves_what_it_had(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "GRACE_S", 0.0)
    output = tmp_path / "section.json"
    code = (
        "import sys, time; from pathlib import Path\n"
        f"sys.path[:0] = {[str(TOOLS), *sys.path]!r}\n"
        "from gpu_checks.processes import write_json\n"
        f"write_json(Path({str(output)!r}), {{'rows': [1, 2]}})\n"
        "time.sleep(600)"
    )
    late = gpu_suite.run_apart([sys.executable, "-c", code], output, 6.0)
    assert late["rows"] == [1, 2]
    assert late["error"] == "ended after 6 s"


def test_a_section_that_fails_leaves_what_it_had(tmp_path, monkeypatch):
    def run(_, context):
        context.keep({"rows": [1, 2]})
        raise MemoryError("no room")

    monkeypatch.setattr(gpu_suite, "run_section", run)
    context = Context(True, 1.0, output=tmp_path / "section.json")
    result = gpu_suite._guarded("kernels", context)
    assert result["rows"] == [1, 2]
    assert result["error"] == "MemoryError: no room"


CHILD = """
import subprocess, sys, time
apart = {apart}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=apart)
print(child.pid, flush=True)
time.sleep(0 if apart else 600)
"""


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_what_a_process_started_ends_with_it():
    ended = run_for([sys.executable, "-c", CHILD.format(apart=False)], 5.0)
    assert ended.status is None
    pid = int(ended.out)
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_who_holds_a_pipe_is_not_waited_for():
    """As ranks do, which are in sessions of their own, and end by themselves."""
    ended = run_for([sys.executable, "-c", CHILD.format(apart=True)], 60.0)
    pid = int(ended.out)
    try:
        assert ended.status == 0
        assert is_running(pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_who_ends_the_suite_ends_its_section(tmp_path):
    """Whatever is running; what the sections before it left is in the file."""
    code = (
        "import runpy, sys, time\n"
        f"sys.path[:0] = {[str(TOOLS), *sys.path]!r}\n"
        "import torch, gpu_checks.processes as processes\n"
        "torch.cuda.is_available, torch.cuda.get_device_name = lambda: True, lambda: 'card'\n"
        "plain = processes.run_for\n"
        "def run_for(command, seconds, cwd):\n"
        "    file = command[command.index('--output') + 1]\n"
        "    write = f'import json; open({file!r}, \"w\").write(json.dumps(dict(wall_s=1)))'\n"
        "    code = write if 'kernels' in command else 'print(1); import time; time.sleep(600)'\n"
        "    print('section', flush=True)\n"
        "    return plain([sys.executable, '-c', code], seconds)\n"
        "processes.run_for = run_for\n"
        f"sys.argv = ['x', '--output', {str(tmp_path / 'r.json')!r}]\n"
        "sys.argv += ['--sections', 'kernels,shards']\n"
        f"runpy.run_path({str(TOOLS / 'gpu_suite.py')!r}, run_name='__main__')"
    )
    suite = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert [suite.stdout.readline() for _ in range(2)] == ["section\n"] * 2
    time.sleep(0.5)
    suite.terminate()
    assert suite.wait(30) == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "r.json").read_text())["sections"]["kernels"]["wall_s"]


TESTS = """
import time, pytest
def test_good(): pass
def test_bad(): assert 1 == 2
@pytest.mark.skip
def test_skipped(): pass
@pytest.fixture
def broken(): raise ValueError("no")
def test_broken(broken): pass
def test_hangs(): time.sleep(600)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_what_became_of_each_test_is_known_though_one_hangs(tmp_path, monkeypatch, workers):
    (tmp_path / "test_some.py").write_text(TESTS)
    file = tmp_path / "outcomes"
    monkeypatch.setenv(outcomes.VARIABLE, str(file))
    monkeypatch.setenv("PYTHONPATH", str(TOOLS))
    command = [sys.executable, "-m", "pytest", "-p", outcomes.__name__, "-n", str(workers)]
    command += ["--rootdir", str(tmp_path), "--dist", "loadgroup", str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.2)
        seen = outcomes.read(file.read_text().splitlines()) if file.exists() else {}
        if len(seen.get("tests", ())) == 4 and seen["unfinished"]:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert seen["collected"] == 5
    assert seen["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
    assert [name.split("::")[-1] for name in seen["unfinished"]] == ["test_hangs"]
    texts = {each["test"].split("::")[-1]: each["text"] for each in seen["failed"]}
    assert "assert 1 == 2" in texts["test_bad"]
    assert "ValueError: no" in texts["test_broken"]


def test_what_faults_costs_a_model_no_figure_that_was_there(monkeypatch):
    monkeypatch.setattr(end_to_end, "MODELS", end_to_end.MODELS[:1])
    monkeypatch.setattr(end_to_end, "HYBRIDS", ())

    def fault(*_):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(end_to_end, "with_wrong_drafts", fault)
    (row,) = end_to_end.run(Context(True, 600.0))["rows"]
    assert row["errors"] == {"wrong drafts": "RuntimeError: an illegal memory access"}
    assert "error" not in row
    plain = {"latency, graphs auto", "batch 32, graphs auto", "decode_percent", "prefill_percent"}
    assert plain | {"latency, int8", "latency, int4", "latency, kernels that wait"} <= row.keys()


def test_after_a_fault_no_kernel_is_timed(monkeypatch):
    """Every later row would have its echo for an error."""

    def fault():
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(torch.cuda, "synchronize", fault)
    case = Case("memory", "the guilty one", lambda: None, 1.0)
    kernels.check_that_the_gpu_lives(Context(True, 1.0), case)
    with pytest.raises(RuntimeError, match=r"after 'the guilty one'.*illegal memory access"):
        kernels.check_that_the_gpu_lives(Context(False, 1.0), case)


LINES = [
    '["collected", 3]', '["begun", "a"]', '["begun", "b"]', '["ended", "a", "passed", 0.5, ""]'
]  # fmt: skip


def test_what_pytest_said():
    good = tests_on_gpu.result_of(Ended(0, "....\n1 passed in 4.00s\n", ""), LINES)
    assert good["counts"] == {"passed": 1}
    assert good["summary"] == "1 passed in 4.00s"
    assert good["tests"] == {"a": ("passed", 0.5)}
    assert "error" not in good
    bad = tests_on_gpu.result_of(Ended(1, "1 failed, 2 passed in 1s", "a driver's words"), LINES)
    assert bad["error"] == "pytest: 1 failed, 2 passed in 1s"
    assert "a driver's words" in bad["tail"]
    late = tests_on_gpu.result_of(Ended(None, "....", ""), LINES)
    assert late["error"] == "pytest: 1 of 3 ended in time"
    assert late["unfinished"] == ["b"]


def test_tests_that_are_run_exist():
    root = TOOLS.parent
    assert all((root / path).exists() for path in tests_on_gpu.PATHS)
    on_card = {str(path.relative_to(root)) for path in (root / "tests/gpu").glob("test_*.py")}
    assert on_card <= set(tests_on_gpu.PATHS), "all of them are run"
    for name in tests_on_gpu.WITHOUT_A_CARD:
        assert (root / f"tests/unit/triton/test_triton_{name}.py").is_file()


def test_what_is_not_compiled_in_time_is_not_waited_for(monkeypatch):
    waited = []

    class Pending:
        def get(self, timeout):
            waited.append(timeout)
            raise RuntimeError("misaligned") if len(waited) == 1 else multiprocessing.TimeoutError

    class Pool:
        def __init__(self, _): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def apply_async(self, *_):
            return Pending()

    monkeypatch.setattr(compile_section, "get_context", lambda _: SimpleNamespace(Pool=Pool))
    monkeypatch.setattr(compile_section, "cases_of", lambda _: ("some case",))
    result = compile_section.run(Context(False, 0.0))
    failed, *late = result["rows"]
    assert failed["error"] == "RuntimeError: misaligned"
    assert [row["skipped"] for row in late] == ["out of time"] * len(late)
    assert len(late) == compile_section.MOST_CANDIDATES - 1
    assert set(waited) == {0.0}


def test_kernels_are_tuned_as_they_come_and_rows_are_kept(tmp_path, monkeypatch):
    order = []
    some = [("model", Case("memory", name, lambda: None, 1.0)) for name in ("first", "second")]
    monkeypatch.setattr(kernels, "all_cases", lambda _: iter(some))
    monkeypatch.setattr(kernels, "read_rate", lambda _: 1.0)
    monkeypatch.setattr(kernels, "gemm_rate", lambda _: 1.0)
    monkeypatch.setattr(kernels, "calibration", lambda *_: {})
    monkeypatch.setattr(kernels, "timed", lambda _, case, *__: {"case": case.name})
    monkeypatch.setattr(kernels, "tuned", lambda _, case, *__: order.append(case.name) or {"t": 1})
    monkeypatch.setattr(kernels, "mamba_ssm_rows", lambda _: order.append("peer") or [])
    output = tmp_path / "section.json"
    kernels.run(Context(False, 60.0, output=output))
    assert order == ["first", "second", "peer"]
    assert [row["t"] for row in json.loads(output.read_text())["rows"]] == [1, 1]


def test_a_model_that_fails_alone_leaves_the_others(monkeypatch):
    def answers(_, folder, size, codec):
        if "mamba2" in folder:
            raise MemoryError("no room")
        return {"logits": [], "tokens": [size, codec], "path": ""}

    monkeypatch.setattr(sharing, "answers", answers)
    monkeypatch.setattr(sharing, "probe_ipc", lambda: "works")
    monkeypatch.setattr(sharing, "parity", lambda *_: {"passed": True})
    rows = sharing.run(Context(False, 60.0))["rows"]
    failed = [row for row in rows if "error" in row]
    assert {row["model"] for row in failed} == {"mamba2-2.7b"}
    assert failed[0]["error"] == "alone: MemoryError: no room"
    assert sum(row.get("passed", False) for row in rows) == len(rows) - len(failed)
