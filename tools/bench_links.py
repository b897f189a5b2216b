"""Speed of sums over ranks on links of a set rate: messages alone, and a whole engine.

    tools/bench_links.py --rates 200mbit 1gbit 10gbit --output benchmarks/results/shaped-links.json

Each rate runs under tools/shaped_link.py (which see: it needs the right to make network
namespaces), every rank on one thread. Weights are random, in bfloat16, of a published shape;
`--layers` cuts its depth: what a layer computes and what it sends keep their ratio. Wire bytes are
read from the interface. Of each engine run: seconds, seconds in which the rank waited for messages,
and the processor time of the thread that computes and of all others (who move bytes meanwhile).
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch

from sidewinder import LLM, SamplingParams
from sidewinder.bench.machine import machine_info
from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint import random
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import EXACT, policy_of
from sidewinder.engine import loading
from sidewinder.memory import keep_freed_memory
from sidewinder.parallel.protocol import Transport
from sidewinder.parallel.torchrun import TorchrunPlace, join_torchrun

LINK = "link0"
TOOL = Path(__file__).with_name("shaped_link.py")
SIZES = tuple(4096 << (2 * step) for step in range(6))
WIDTH = 1024
"""Channels of the activations that messages alone are rows of."""
WAYS = (
    ("exact", "none"), ("int8", "none"), ("int6", "none"), ("int4", "none"),
    ("exact", "x_proj"), ("exact", "out_proj"), ("exact", "both"), ("int4", "both"),
    ("exact", "none"),
)  # fmt: skip
"""Codec and what is hidden; the plain one comes first and last, to show the drift."""


def main() -> int:
    args = _parse()
    if args.inside is not None:
        _measure(args)
        return 0
    links = [_run_link(rate, args.ranks) for rate in args.rates]
    result: dict[str, Any] = {"what": "shaped links", "machine": machine_info()}
    result |= {"command": sys.argv, "ranks": args.ranks, "shape": args.shape}
    result |= {"layers": args.layers, "links": links}
    result["load"] = {"batch": args.batch, "prompt": args.prompt, "output": args.tokens}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sessions = json.loads(args.output.read_text()) if args.output.exists() else []
    args.output.write_text(json.dumps([*sessions, result], indent=1) + "\n")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rates", nargs="+", default=["1gbit"])
    parser.add_argument("--shape", default="mamba-790m", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="of the shape's (all)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--ways", nargs="*", default=["/".join(way) for way in WAYS])
    parser.add_argument(
        "--messages", nargs="*", default=["tcp", "gloo"], help="alone: TRANSPORT or TRANSPORT/CODEC"
    )
    parser.add_argument("--output", type=Path, required=True, help="gets a session more")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.layers = args.layers or SHAPES[args.shape]["num_hidden_layers"]
    return args


def _run_link(rate: str, ranks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "rows.json"
        own = [*sys.argv, "--inside", str(inside)]
        link = ["--ranks", str(ranks), "--rate", rate]
        command = [sys.executable, str(TOOL), *link, "--", sys.executable, *own]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        summary = json.loads(done.stdout.splitlines()[-1])
        measured: dict[str, Any] = json.loads(inside.read_text())
        return {"rate": rate, "whole_run": summary} | measured


def _measure(args: argparse.Namespace) -> None:
    """What each rank does under the shaped link; the first one writes the rows."""
    torch.set_num_threads(1)
    keep_freed_memory()
    messages = [row for name in args.messages for row in _messages(*_pair(name))]
    engines = _engines(args) if args.ways else []
    if os.environ["RANK"] == "0":
        args.inside.write_text(json.dumps({"messages": messages, "engines": engines}))


def _engines(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every way."""
    # Engines only read their weights: all share one random model, which takes long to draw.
    draw = functools.cache(random.random_shard)
    vars(loading)["random_shard"] = draw
    with tempfile.TemporaryDirectory() as folder:
        shape = SHAPES[args.shape] | {"dtype": "bfloat16", "num_hidden_layers": args.layers}
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        _engine(args, folder, *args.ways[0].split("/"))  # The first engine of a process is slower.
        engines = []
        for way in args.ways:
            engines.append(_engine(args, folder, *way.split("/")))
            if os.environ["RANK"] == "0":
                row = {name: value for name, value in engines[-1].items() if name != "tokens"}
                print(json.dumps(row), file=sys.stderr, flush=True)
    plain = engines[0]["tokens"]
    for row in engines:
        row["same_tokens"] = row.pop("tokens") == plain
    return engines


def _pair(name: str) -> tuple[Transport, str]:
    transport, _, codec = name.partition("/")
    return cast(Transport, transport), codec or EXACT


def _messages(transport: Transport, codec: str = EXACT) -> list[dict[str, Any]]:
    """All-reduces of bfloat16 by size."""
    place = TorchrunPlace.read(os.environ, int(os.environ["WORLD_SIZE"]))
    store = f"messages-{transport}-{codec}"
    inner = join_torchrun(place, torch.device("cpu"), transport, 30.0, store)
    group = inner if codec == EXACT else QuantisedCollectives(inner, policy_of(codec))
    rows = []
    for size in SIZES:
        x = torch.zeros(size // 2 // WIDTH, WIDTH, dtype=torch.bfloat16)
        calls = 100 if size < 1 << 18 else 7
        seconds = []
        for call in range(calls + 2):
            group.barrier()
            started = time.perf_counter()
            group.all_reduce_delta(x, "bench", 0)
            if call >= 2:
                seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        rows.append(
            {"transport": transport, "codec": codec, "bytes": size, "median_us": median * 1e6,
             "busbw_gbps": size / median / 1e9 * 2 * (group.tp.size - 1) / group.tp.size}
        )  # fmt: skip
    group.barrier()
    group.close()
    return rows


def _engine(args: argparse.Namespace, folder: str, codec: str, overlap: str) -> dict[str, Any]:
    llm = LLM(
        folder, tp=int(os.environ["WORLD_SIZE"]), device="cpu", launch="torchrun", threads=1,
        load_format="random", all_reduce=codec, overlap=overlap, max_batch_size=args.batch,
        state_cache_bytes=0, tokenizer=None,
    )  # fmt: skip
    with llm:
        _generate(llm, 2, 130, 2)  # what is built or touched once
        before, started = _counters(llm), time.perf_counter()
        outputs = _generate(llm, args.batch, args.prompt, args.tokens)
        total = time.perf_counter() - started
        spent = {name: now - before[name] for name, now in _counters(llm).items()}
        path = llm.report()["collectives"]
    prefill = max(output.metrics.ttft_s for output in outputs)
    return {
        "all_reduce": codec, "overlap": overlap, "collectives": path, "total_s": total,
        "prefill_s": prefill, "decode_s": total - prefill, **spent,
        "tokens": [output.token_ids for output in outputs],
    }  # fmt: skip


def _counters(llm: LLM) -> dict[str, float]:
    """What this rank has used so far."""
    return {
        "sent_bytes": _wire_bytes(),
        "waited_s": llm.report()["collectives_wait_s"],
        "compute_cpu_s": time.thread_time(),
        "other_cpu_s": time.process_time() - time.thread_time(),
    }


def _wire_bytes() -> int:
    """Bytes of all Ethernet frames that have left this rank, as its token bucket counts them.

    The interface's own counter takes what the kernel hands over in one piece for one frame.
    """
    answer = subprocess.check_output(["tc", "-s", "-j", "qdisc", "show", "dev", LINK])
    return int(json.loads(answer)[-1]["bytes"])


def _generate(llm: LLM, batch: int, prompt: int, tokens: int) -> list[Any]:
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    prompts = [[(7 + 31 * b + 13 * i) % 9973 for i in range(prompt)] for b in range(batch)]
    return list(llm.generate(prompts, params))


if __name__ == "__main__":
    sys.exit(main())
