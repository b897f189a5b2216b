"""The tool that times experts, at tiny sizes: both ways are timed, and the page is written."""

import json

import bench_experts
import pytest
import torch

from sidewinder.ops import native
from sidewinder.testing import assert_close

if not native.is_available():
    pytest.skip("built without the native module", allow_module_level=True)

SIZES = {"experts": 5, "chosen": 2, "width": 64, "inner": 128}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    values = {"ROWS": (1, 3), "ROUNDS": 3, "EVICTED_BYTES": 64, "sizes": lambda: SIZES}
    values |= {"RESULTS": tmp_path / "experts.json", "PAGE": tmp_path / "page.md"}
    for name, value in values.items():
        monkeypatch.setattr(bench_experts, name, value)
    return tmp_path


def test_both_ways_are_timed_and_reported(tiny, monkeypatch):
    (tiny / "page.md").write_text("before\n<!-- begin experts -->\nold\n<!-- end experts -->\n")
    threads = native._native.threads()
    try:
        for what in ("measure", "report"):
            monkeypatch.setattr("sys.argv", ["bench_experts.py", what])
            bench_experts.main()
    finally:
        native.set_threads(threads)
    result = json.loads((tiny / "experts.json").read_text())
    assert result["command"] == "bench_experts.py measure"
    assert {"cpu", "commit", "torch", "date"} <= set(result["machine"])
    found = [(row["format"], row["rows"]) for row in result["layers"]]
    assert found == [(kind, rows) for kind in ("bfloat16", "int8") for rows in (1, 3)]
    for row in result["layers"]:
        for way in bench_experts.WAYS:
            low, high = row["ms_range"][way]
            assert 0 < low <= row["ms"][way] <= high
        least, most = row["times_as_fast_range"]
        assert least <= row["times_as_fast"] <= most
    one = result["layers"][0]  # two of five experts, three matrices each
    assert one["gb_per_s"] == pytest.approx(2 * 3 * 64 * 128 * 2 / one["ms"]["one call"] / 1e6)
    page = (tiny / "page.md").read_text()
    assert page.startswith("before\n")
    assert page.count("| int8 |") == 2
    assert "old" not in page


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_both_ways_compute_the_same(kind):
    matrices, _ = bench_experts.layer(kind, 5, 64, 128)
    shares, chosen = torch.rand(7, 5).topk(2)
    x = torch.randn(7, 64).bfloat16()
    one, other = (
        way(x, matrices, chosen.int(), shares, "silu") for way in bench_experts.WAYS.values()
    )
    assert_close("y", other, one, 2**-6)
