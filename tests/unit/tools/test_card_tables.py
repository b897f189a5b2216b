"""A card's results on the projection's page, and the tool that compares them."""

import json
import sys
from pathlib import Path

import card_tables
import check_projection
import pytest
import torch
from project_paper import setting

from sidewinder.projection.calibration import Calibration

PLACE = ("h200", "nvlink4")


def result(gpu="NVIDIA H100 80GB HBM3", **calibration):
    row = {"model": "mamba-2.8b", "tp": 2, "prefill_tokens": 8192, "prefill_s": 0.1}
    return {
        "machine": {"gpu": gpu},
        "versions": {"dry_run": False},
        "calibration": calibration,
        "sections": {"shards": {"rows": [row, {"model": "zamba-7b", "tp": 2, "error": "no"}]}},
    }


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """A checkout's results, and its page."""
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/projection.md").write_text("<!-- begin gpu -->\n<!-- end gpu -->\n")
    monkeypatch.chdir(tmp_path)
    card_tables.suites.cache_clear()
    yield
    card_tables.suites.cache_clear()


def put(name, content):
    file = Path("benchmarks/results") / name
    file.write_text(json.dumps(content))
    return file


def test_a_measured_card_serves_its_sister_and_no_other():
    put("gpu-suite-nvidia-h100.json", result(gemm=0.9))
    put("gpu-suite-nvidia-h100.tuning.json", {"scan_prefill": {}})
    assert setting("mamba-2.8b", 1, PLACE, torch.bfloat16).calibration.gemm == 0.9
    assert card_tables.calibration_of("h100").gemm == 0.9
    assert card_tables.calibration_of("a100") == Calibration()
    served, others = card_tables.constants_lines()
    assert served.startswith("**h100, h200**: measured on one NVIDIA H100 80GB HBM3 (`benchmarks/")
    assert "gpu-suite-nvidia-h100.json`): gemm 0.90; assumed: memory 0.80, " in served
    assert others.startswith("**All other GPUs**: assumed: gemm 0.70, ")


def test_each_of_two_measured_sisters_has_its_own():
    put("gpu-suite-a.json", result(gemm=0.9))
    put("gpu-suite-b.json", result("NVIDIA H200", gemm=0.6))
    assert card_tables.calibration_of("h100").gemm == 0.9
    assert card_tables.calibration_of("h200").gemm == 0.6
    assert [line.split(":")[0] for line in card_tables.constants_lines()] == [
        "**h100**", "**h200**", "**All other GPUs**",
    ]  # fmt: skip


def test_without_a_card_all_is_assumed():
    assert card_tables.calibration_of("h100") == Calibration()
    (line,) = card_tables.constants_lines()
    assert line.startswith("**All GPUs: no card has been measured**")
    assert list(card_tables.gpu_table()) == ["No result of a card is committed yet."]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["check_projection.py", *map(str, arguments)])
    return check_projection.main()


def test_the_comparison_is_written_printed_and_put_on_the_page(monkeypatch, capsys):
    file = put("gpu-suite-nvidia-h100.json", result(gemm=0.9, kernel_s=1e-6))
    assert run(monkeypatch, "--gpu-suite", file) == 0
    report = json.loads(Path("benchmarks/results/projection-gpu.json").read_text())
    (row,) = report["rows"]
    assert (row["model"], row["tp"], row["what"]) == ("mamba-2.8b", 2, "prefill")
    assert report["calibration"]["gemm"] == {"value": 0.9, "measured": True}
    projected, error = 1e3 * row["projected_s"], f"{100 * row['error']:+.0f} %"
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"| mamba-2.8b | 2 | prefill | 100.00 | {projected:.2f} | {error} |"]
    page = Path("docs/projection.md").read_text()
    assert f"| mamba-2.8b | 2 | 100.00 / {projected:.2f} ({error}) | not measured |" in page
    assert "zamba" not in page
    assert "engine" not in page, "no whole model was measured"


def test_what_cannot_be_compared(monkeypatch, capsys):
    content = result(gemm=0.9) | {"sections": {}}
    file = put("gpu-suite-x.json", content)
    assert run(monkeypatch, "--gpu-suite", file) == 2
    assert "no measured model or shard" in capsys.readouterr().err
    assert not Path("benchmarks/results/projection-gpu.json").exists()
    for arguments in (["a.json"], [], ["--gpu-suite", file, "a.json"]):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
