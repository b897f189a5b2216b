"""The tool that times single kernels, at tiny sizes: each is timed, and the page is written."""

import json

import bench_kernels
import pytest

from sidewinder.ops import native

if not native.is_available():
    pytest.skip("built without the native module", allow_module_level=True)

LINEAR = ("linear, bfloat16", "linear, int8", "linear, int4", "linear, bfloat16, torch")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    sizes = {"D_MODEL": 64, "D_INNER": 128, "LAYERS": 2, "ROUNDS": 2, "EVICTED_BYTES": 64}
    sizes |= {"LINEAR_ROWS": (1, 3), "STEP_ROWS": (1, 2)}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_kernels, name, value)
    monkeypatch.setattr(bench_kernels, "RESULTS", tmp_path / "kernels.json")
    monkeypatch.setattr(bench_kernels, "PANELS", tmp_path / "kernels-panels.json")
    monkeypatch.setattr(bench_kernels, "PAGE", tmp_path / "page.md")
    return tmp_path


def test_every_kernel_is_timed_and_reported(tiny, monkeypatch):
    begin, end = "<!-- begin single kernels -->\n", "<!-- end single kernels -->\n"
    panels = "<!-- begin panels -->\nold\n<!-- end panels -->\n"
    (tiny / "page.md").write_text(f"before\n{begin}old\n{end}between\n{panels}after\n")
    threads = native._native.threads()
    try:
        for what in ("measure", "measure-panels", "report"):
            monkeypatch.setattr("sys.argv", ["bench_kernels.py", what])
            bench_kernels.main()
    finally:
        native.set_threads(threads)
    rows = json.loads((tiny / "kernels.json").read_text())["kernels"]
    assert [(row["kernel"], row["rows"]) for row in rows] == [
        *((kernel, n) for n in (1, 3) for kernel in LINEAR),
        *(
            (kernel, n)
            for n in (1, 2)
            for kernel in ("selective scan", "convolution", "RMS norm with residual")
        ),
    ]
    for row in rows:
        low, high = row["us_range"]
        assert 0 < low <= row["us"] <= high
    first = rows[0]  # 128 * 2 outputs of 64 inputs
    assert first["gflop_per_s"] == pytest.approx(2 * 256 * 64 / first["us"] / 1e3)
    assert first["gb_per_s"] == pytest.approx(256 * 64 * 2 / first["us"] / 1e3)
    page = (tiny / "page.md").read_text()
    assert page.startswith(f"before\n{begin}")
    assert f"{end}between\n<!-- begin panels -->\n" in page
    assert page.endswith("<!-- end panels -->\nafter\n")
    assert page.count("| selective scan |") == 2
    assert "old" not in page


def test_packed_products_stand_beside_those_in_rows():
    def row(kernel, us):
        return {"kernel": f"linear, {kernel}", "rows": 4, "us": us}

    kernels = [
        row("bfloat16, in rows", 9e3), row("bfloat16", 3e3), row("int8", 2e3),
        row("int4, in rows", 5e3), row("int4", 2e3), row("bfloat16, torch", 8e3),
    ]  # fmt: skip
    machine = {"cpu": "one", "commit": "abc", "date": "2026-11-27T12:00:00"}
    result = {"machine": machine, "isa": "avx2", "rounds": 7, "kernels": kernels}
    _, titles, _, line = "".join(bench_kernels.panel_table(result)).split("\n")[1:-1]
    assert titles.split(" | ")[1:] == [
        "bfloat16, in rows", "in panels", "rows over panels",
        "int4, in rows", "in panels", "rows over panels", "int8", "bfloat16, torch |",
    ]  # fmt: skip
    assert line == "| 4 | 9 | 3 | 3.00 | 5 | 2 | 2.50 | 2 | 8 |"
