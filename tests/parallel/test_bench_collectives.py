import json

import pytest

from sidewinder.bench.collectives import bench_all_reduce


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_report_follows_the_definitions(transport, dtype):
    report = bench_all_reduce(3, transport, [1, 256, 100_000], dtype=dtype, calls=30)
    assert json.loads(json.dumps(report)) == report
    assert [row["calls"] for row in report["rows"]] == [30, 30, 30]
    for row in report["rows"]:
        assert row["busbw_gbps"] == pytest.approx(row["algbw_gbps"] * 4 / 3)
        assert row["algbw_gbps"] == pytest.approx(row["bytes"] / row["median_us"] / 1e3)
        assert 0 < row["median_us"] <= row["p999_us"] <= row["max_us"]
    assert (report["bare_exchange"] is None) == (transport == "gloo")
