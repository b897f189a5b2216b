import json
import subprocess
import sys
from pathlib import Path

from sidewinder.ops.codec import CODECS, native

TOOL = Path(__file__).parents[3] / "tools" / "bench_codec.py"


def test_prints_speeds_of_every_codec():
    command = [sys.executable, str(TOOL), "--rows", "2", "--width", "130", "--calls", "1"]
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    ways = 2 if native.is_available() else 1
    assert len(report["speeds"]) == 2 * len(CODECS) * ways
    speeds = ("encode", "decode_sum_encode", "decode", "decode_sum")
    assert all(row[name] > 0 for row in report["speeds"] for name in speeds)
