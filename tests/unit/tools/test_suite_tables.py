"""A card's figures on the pages are those of its committed suite."""

import json
from pathlib import Path

import pytest
import suite_tables
from page_blocks import fill

ROOT = Path(__file__).resolve().parents[3]
RESULT = ROOT / "benchmarks" / "results" / "gpu-suite-nvidia-h100-80gb-hbm3.json"


@pytest.mark.parametrize(
    ("page", "block"),
    [(page, name) for page, names in suite_tables.PAGES.items() for name in names],
)
def test_pages_show_the_committed_result(page, block):
    text = (ROOT / "docs" / page).read_text()
    rows = suite_tables.PAGES[page][block](json.loads(RESULT.read_text()))
    assert fill(text, block, rows) == text


def test_what_was_not_measured_is_not_shown_as_a_figure():
    latency = {"prefill_s": {"median": 0.1}, "tpot_s": {"median": 0.0025}}
    whole = {
        "model": "a", "prefill_percent": 50.0, "decode_percent": 75.4,
        "latency, graphs auto": latency,
    }  # fmt: skip
    suite = {
        "verdicts": [
            {"what": "x", "value": 61.23, "target": 60, "met": True},
            {"what": "y", "value": "0 of 0", "target": "all", "met": None},
        ],
        "sections": {
            "end_to_end": {"rows": [whole, {"model": "b", "skipped": "out of time"}]},
            "kernels": {
                "rows": [
                    {"model": "a", "kind": "scan", "case": "selective_scan, prefill",
                     "seconds": 1e-3, "percent_of_floor": 20.0},
                    {"model": "a", "kind": "peer", "case": "theirs", "skipped": "not installed"},
                    {"model": "a", "kind": "memory", "case": "scaled_rows, prefill",
                     "seconds": 1e-3, "percent_of_floor": 20.0},
                ]
            },
        },
    }  # fmt: skip
    assert list(suite_tables.targets(suite))[2:] == ["| x: 60 | 61.2 | met |"]
    missing = " | ".join(["not measured"] * 6)
    expected = [f"| a | 100 | 50 % | 2.5 | 75 % | {missing} |"]
    assert list(suite_tables.models(suite))[2:] == expected
    expected = ["| a | selective_scan, prefill | 1000.0 | 20 % |  |  |"]
    assert list(suite_tables.kernels(suite))[2:] == expected
