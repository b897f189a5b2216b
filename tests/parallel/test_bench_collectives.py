import json

import pytest

from sidewinder.bench.collectives import bench_all_reduce, bench_calls


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
