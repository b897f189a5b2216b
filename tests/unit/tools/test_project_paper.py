"""The projected tables in docs/projection.md are those that the code gives."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from card_tables import GPU_RESULT, RESULTS
from check_projection import card_report, fitted_results
from page_blocks import fill
from project_paper import TABLES

from sidewinder.bench.shapes import SHAPES
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.links import Link
from sidewinder.projection.measured import (
    CPU_START,
    compare,
    fit,
    load_of_result,
    setting_of_result,
)
from sidewinder.projection.model import project

ROOT = Path(__file__).parents[3]
LINK = Link("memory", "memory", 4e9, 2e-6)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_up_to_date(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = Path("docs/projection.md").read_text()
    assert fill(page, name, TABLES[name]()) == page, "run tools/project_paper.py"


def test_the_committed_comparison_is_what_its_results_give():
    report = json.loads((ROOT / "benchmarks/results/projection-cpu.json").read_text())
    link = Link(
        "shared memory", "", report["link"]["gb_per_s"] * 1e9, report["link"]["exchange_us"] / 1e6
    )
    rows = compare(report["results"], link, fit(*fitted_results(report["results"]), link))
    skew_s = fit(*fitted_results(report["results"]), link).skew_s
    # Python 3.12 adds floats with more care than 3.11, so the last bit may differ, and no other.
    assert abs(skew_s - report["fitted"]["skew_s"]) <= math.ulp(skew_s)
    for now, then in zip(rows, report["rows"], strict=True):
        for name in ("ttft", "tpot"):
            assert now[name]["projected_s"] == pytest.approx(then[name]["projected_s"], rel=1e-3)


@pytest.mark.skipif(not (ROOT / GPU_RESULT).exists(), reason="no result of a card is committed")
def test_the_committed_comparison_with_a_card_is_what_its_suite_gives():
    report = json.loads((ROOT / GPU_RESULT).read_text())
    now = card_report(ROOT / RESULTS / report["suite"])
    for row, then in zip(now["rows"], report["rows"], strict=True):
        assert [row[name] for name in ("model", "tp", "what")] == [
            then[name] for name in ("model", "tp", "what")
        ]
        for name in ("measured_s", "projected_s"):
            assert row[name] == pytest.approx(then[name]), "run tools/check_projection.py"


def result(name: str, tp: int, truth: Calibration) -> dict:
    """What a machine that obeys the model would have measured."""
    values = {
        "model": name,
        "load": {"prompt_tokens": 300, "output_tokens": 16, "batch": 2},
        "engine": {"tp": tp, "dtype": "bfloat16", "threads": 1, "max_step_tokens": 256},
        "ceilings": {"read_bytes_per_s": 12e9 * tp, "gemm_flops_per_s": 60e9 * tp},
        "machine": {"cpu": "toy"},
    }
    speed = project(setting_of_result(values, LINK, truth), load_of_result(values))
    return values | {"prefill_s": {"median": speed.ttft}, "tpot_s": {"median": speed.tpot}}


def test_a_fit_finds_the_efficiencies_that_made_the_result():
    assert "mamba-130m" in SHAPES
    truth = replace(CPU_START, gemm=0.62, memory=0.48, skew_s=3e-5)
    results = [result("mamba-130m", 1, truth), result("mamba-370m", 2, truth)]
    fitted = fit(*results, LINK)
    assert fitted.skew_s == pytest.approx(3e-5, rel=1e-3)
    assert fit(results[0], None, LINK).skew_s == 0
    assert fitted.gemm == pytest.approx(0.62, rel=1e-3)
    assert fitted.memory == pytest.approx(0.48, rel=1e-3)
    for row in compare(results, LINK, fitted):
        assert abs(row["ttft"]["error"]) < 1e-3
        assert abs(row["tpot"]["error"]) < 1e-3
