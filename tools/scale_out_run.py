"""Two replicas of two ranks on one machine, over Ray Serve; writes one JSON object.

    python tools/scale_out_run.py models/mamba --out benchmarks/results/scale-out.json

Starts `examples/ray_serve.py`, sends prompts that share a few beginnings, then kills a rank of one
replica under load and notes how many requests fail and when the replica is back. Needs Ray.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from soak import tree

from sidewinder.bench.machine import machine_info
from sidewinder.bench.serve import Objectives, bench_serve
from sidewinder.bench.serve_load import ServeLoad

START_S, BACK_S = 120.0, 60.0
EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_serve.py"
FIELDS = ("requests", "failed", "errors", "prompt_tokens", "cached_tokens", "duration_s",
          "output_tokens_per_s", "ttft_s")  # fmt: skip


@contextmanager
def replicas(model: str, port: int) -> Iterator[int]:
    """The example as a process of its own; gives its pid."""
    command = [sys.executable, str(EXAMPLE), model, "--replicas", "2", "--tp", "2",
               "--machine-cpus", "4", "--threads", "1", "--max-batch-size", "8",
               "--dtype", "float32", "--port", str(port)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process.pid
        finally:
            process.terminate()
            if process.wait(60) != 0:
                raise RuntimeError(f"the example ended with {process.returncode}")


def by_replica(client: httpx.Client, name: str) -> dict[str, float]:
    """One metric's value (without other labels) by replica."""
    found = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f'{name}{{replica="'):
            found[line.split('"')[1]] = float(line.split()[-1])
    return found


def load(url: str, **options: Any) -> dict[str, Any]:
    """One pass of a load."""
    own = ServeLoad(vocab_size=2048, **options)
    (each,) = asyncio.run(bench_serve(url, own, Objectives()))["passes"]
    return {name: each[name] for name in FIELDS}


async def killing(url: str, pid: int, client: httpx.Client) -> dict[str, Any]:
    """A load during which a rank is killed, and how many replicas there were when."""
    own = ServeLoad(requests=150, rate=5, prompt_tokens=64, output_tokens=32, vocab_size=2048)
    sending = asyncio.create_task(bench_serve(url, own, Objectives()))
    await asyncio.sleep(5)
    command = b"sidewinder.parallel.worker"
    ranks = [each for each in tree(pid) if command in Path(f"/proc/{each}/cmdline").read_bytes()]
    os.kill(ranks[-1], signal.SIGKILL)
    killed, seen = time.monotonic(), list[dict[str, float]]()
    while time.monotonic() - killed < BACK_S and [each["replicas"] for each in seen] != [2, 1, 2]:
        n = len(await asyncio.to_thread(by_replica, client, "sidewinder_state_slots"))
        if not seen or seen[-1]["replicas"] != n:
            seen.append({"after_s": round(time.monotonic() - killed, 1), "replicas": n})
        await asyncio.sleep(0.2)
    (each,) = (await sending)["passes"]
    return {"replicas": seen, "load": {name: each[name] for name in FIELDS}}


def measure(model: str, port: int) -> dict[str, Any]:
    """Everything."""
    url = f"http://127.0.0.1:{port}"
    with (
        replicas(model, port) as pid,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        wait_until_ready(client)
        shared = load(url, requests=96, concurrency=8, prompt_tokens=512, prefix_tokens=448,
                      prefixes=6, output_tokens=16)  # fmt: skip
        where = {name: by_replica(client, f"sidewinder_{name}_total")
                 for name in ("prompt_tokens", "cached_tokens")}  # fmt: skip
        killed = asyncio.run(killing(url, pid, client))
        after = load(url, requests=20, concurrency=4, prompt_tokens=64, output_tokens=16, seed=5)
    return {"shared_beginnings": shared | {"by_replica": where}, "a_rank_killed": killed,
            "afterwards": after}  # fmt: skip


def wait_until_ready(client: httpx.Client) -> None:
    """Until both replicas report."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if len(by_replica(client, "sidewinder_state_slots")) == 2:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError("the replicas did not start")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = {"what": "two replicas of two ranks on one machine, over Ray Serve",
              "ray": ray.__version__, "machine": machine_info(),
              "command": " ".join(["python", *sys.argv])}  # fmt: skip
    result |= measure(args.model, args.port)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
