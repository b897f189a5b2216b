import json

import pytest

from sidewinder.bench.collectives import bench_all_reduce, bench_calls, wire_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_report_follows_the_definitions(transport, dtype):
    report = bench_all_reduce(3, transport, [1, 256, 100_000], dtype=dtype, calls=30)
    assert json.loads(json.dumps(report)) == report
    assert [row["calls"] for row in report["rows"]] == [30, 30, 30]
    for row in report["rows"]:
        assert row["busbw_gbps"] == pytest.approx(row["algbw_gbps"] * 4 / 3)
        assert row["algbw_gbps"] == pytest.approx(row["bytes"] / row["median_us"] / 1e3)
        assert 0 < row["median_us"] <= row["p999_us"] <= row["max_us"]
        assert ("bare" in row) == (transport == "shared memory")


def test_time_of_empty_calls():
    report = bench_calls(2, calls=50)
    assert report["calls"] == 50
    assert 0 < report["median_us"] <= report["p999_us"] <= report["max_us"]


@pytest.mark.parametrize(("tp", "gaussian_db"), [(2, 43.8), (3, 40.8)])
def test_a_codec_s_report_has_its_bytes_and_its_error(transport, tp, gaussian_db):
    report = bench_all_reduce(tp, transport, [8192], calls=20, codec="int8")
    row = report["rows"][0]
    whole = 4096 + 2 * 4096 // 128
    assert row["wire_bytes"] == (whole if tp == 2 else 4 * -(-whole // 3 // 130) * 130)
    assert report["sqnr_db"]["gaussian"] == pytest.approx(gaussian_db, abs=0.5)
    assert report["sqnr_db"]["outliers"] < 30


def test_wire_bytes_of_exact_sums():
    assert wire_bytes(3, 100, 2, 2, "exact") == 600
    assert wire_bytes(3, 100, 2, 4, "exact") == 900
