"""The GPU suite's own machinery: sections, budgets, what a failing one leaves. No GPU needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[3] / "tools"
sys.path.insert(0, str(TOOLS))

import gpu_suite  # noqa: E402
from gpu_checks.kernels import sheet  # noqa: E402


def test_dry_run_writes_every_section_asked_for(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, str(TOOLS / "gpu_suite.py"), "--dry-run"]
    command += ["--sections", "kernels,shards", "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads(output.read_text())
    assert report["versions"]["dry_run"]
    for name in ("kernels", "shards"):
        rows = report["sections"][name]["rows"]
        assert len(rows) > 10
        assert not [row for row in rows if "error" in row or "skipped" in row]
    assert all(row["seconds"] > 0 for row in report["sections"]["kernels"]["rows"])
    assert report["calibration"] == {}, "a dry run calibrates nothing"


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run the suite")
def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py"])
    assert gpu_suite.main() == 2
    assert "--dry-run" in capsys.readouterr().err


def test_a_failing_section_leaves_its_error_and_the_rest_goes_on(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    argv = ["gpu_suite.py", "--dry-run", "--sections", "tests,sharing", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", argv)

    def run(name, *_):
        if name == "tests":
            raise MemoryError("no room")
        return {"rows": [{"passed": True}]}

    monkeypatch.setattr(gpu_suite, "run_section", run)
    assert gpu_suite.main() == 1
    sections = json.loads(output.read_text())["sections"]
    assert sections["tests"]["error"] == "MemoryError: no room"
    assert "run_section" in sections["tests"]["traceback"]
    assert sections["sharing"]["rows"] == [{"passed": True}]


def test_processes_that_die_or_dawdle(tmp_path, monkeypatch):
    missing = tmp_path / "nothing.json"
    code = "import sys; print('broken', file=sys.stderr); sys.exit(3)"
    died = gpu_suite.run_apart([sys.executable, "-c", code], missing, 20)
    assert died["error"] == "exit status 3"
    assert "broken" in died["stderr"]
    monkeypatch.setattr(gpu_suite, "GRACE_S", 0.0)
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    late = gpu_suite.run_apart(slow, missing, 1.0)
    assert late["error"].startswith("ended after 1")
    assert late["wall_s"] < 20


def test_budgets_fit_into_eight_minutes():
    assert sum(seconds for _, seconds in gpu_suite.SECTIONS.values()) <= gpu_suite.TOTAL_S
    assert gpu_suite.TOTAL_S <= 8 * 60


def test_products_are_found_among_the_data_sheets():
    assert sheet("NVIDIA H100 80GB HBM3").name == "h100"
    assert sheet("NVIDIA H200").name == "h200"
    assert sheet("NVIDIA A100-SXM4-80GB").name == "a100"
    assert sheet("NVIDIA A100-PCIE-40GB").name == "a100-40gb"
    assert sheet("NVIDIA L40S").name == "l40s"
    assert sheet("NVIDIA RTX A6000").name == "a6000"
    assert sheet("Some other card") is None
