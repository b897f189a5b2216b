"""Throughput over HTTP against `LLM.generate` on the same prompts.

    python tools/bench_serving.py models/mamba --out result.json
    python tools/bench_serving.py mamba-130m --batch 16 --prompt-tokens 64 --output-tokens 32

`--out` is a JSON list; a run takes the place of an earlier one with the same load.

Offline and server take turns, each alone on the machine (two groups of ranks cannot both have its
cores), warm, with prompts that they have not seen. The client runs on the same cores; its processor
time is counted apart. The server's texts of each round are compared with the offline ones (greedy).
"""

import argparse
import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import httpx

from sidewinder import LLM, SamplingParams
from sidewinder.bench.machine import machine_info
from sidewinder.bench.serve import Objectives, bench_serve
from sidewinder.bench.serve_load import ServeLoad, synthetic
from sidewinder.bench.shapes import SHAPES, write_shape

START_S = 120.0
DEMO = Path(__file__).parents[1] / "models" / "mamba"


@contextmanager
def serving(model: str, options: list[str]) -> Iterator[tuple[str, int]]:
    """`sidewinder serve` as a process of its own; gives its address and process id."""
    program = "import sys; from sidewinder.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", model, "--port", "0", *options]
    # A file, not a pipe: nobody reads on once the server listens, and a full pipe would stop it.
    with TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield _address(log, process), process.pid
        finally:
            process.terminate()
            process.wait(START_S)


def _address(log: IO[str], process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        if found := re.search(r"listening on (\S+)", log.read()):
            return found[1]
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"the server did not start: {log.read()}")


def offline(llm: LLM, load: ServeLoad) -> tuple[float, list[str]]:
    """Output tokens per second of one call, and the texts."""
    params = SamplingParams(max_tokens=load.output_tokens, temperature=0.0, ignore_eos=True)
    prompts = [ask.prompt for ask in synthetic(load)]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    elapsed = time.perf_counter() - started
    return load.requests * load.output_tokens / elapsed, [output.text for output in outputs]


def texts(url: str, load: ServeLoad) -> list[str]:
    """The server's texts of a load, all asked for at once."""
    body = {"max_tokens": load.output_tokens, "temperature": 0, "ignore_eos": True}
    prompts = [ask.prompt for ask in synthetic(load)]
    reply = httpx.post(
        f"{url}/v1/completions", json=body | {"prompt": prompts}, timeout=600, trust_env=False
    )
    reply.raise_for_status()
    return [choice["text"] for choice in reply.json()["choices"]]


def with_texts(shape: str, folder: Path) -> dict[str, Any]:
    """A published shape, random weights, the demo models' vocabulary: so events have text."""
    write_shape(shape, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 2048}))
    return {"model": str(folder), "load_format": "random", "tokenizer": str(DEMO)}


def processor_s(pid: int) -> dict[str, float]:
    """Processor seconds so far of a process: its main thread, its other threads, its ranks.

    A server's event loop runs in its main thread; with `tp=1` the model is in the others.
    """
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    own = {int(task.name): _run_s(task) for task in tasks}
    ranks = [int(rank) for task in tasks for rank in (task / "children").read_text().split()]
    main = own.pop(pid)
    in_ranks = [_run_s(task) for rank in ranks for task in Path(f"/proc/{rank}/task").iterdir()]
    return {"main_thread": main, "other_threads": sum(own.values()), "ranks": sum(in_ranks)}


def _run_s(task: Path) -> float:
    return int((task / "schedstat").read_text().split()[0]) / 1e9


def busy_s() -> float:
    """Seconds so far in which the machine's cores ran anything, or were taken by its host."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def counting(pid: int, n_tokens: int) -> Iterator[dict[str, float]]:
    """Fills in microseconds of processors per token: of a process, this one, and all others."""
    spent: dict[str, float] = {}

    def totals() -> dict[str, float]:
        parts = processor_s(pid)
        if pid != os.getpid():
            parts |= {"client": time.process_time()}
        return parts | {"others": busy_s() - sum(parts.values())}

    before = totals()
    yield spent
    spent |= {name: 1e6 * (value - before[name]) / n_tokens for name, value in totals().items()}


def alone(llm: LLM, load: ServeLoad) -> tuple[dict[str, Any], list[str]]:
    """Figures of one offline call, and its texts."""
    with counting(os.getpid(), load.requests * load.output_tokens) as spent:
        rate, found = offline(llm, load)
    return {"output_tokens_per_s": rate, "processor_us_per_token": spent}, found


def served(url: str, pid: int, load: ServeLoad) -> dict[str, Any]:
    """Figures of one pass over a server."""
    with counting(pid, load.requests * load.output_tokens) as spent:
        (found,) = asyncio.run(bench_serve(url, load, Objectives()))["passes"]
    assert not found["failed"], found["errors"]
    return found | {"processor_us_per_token": spent}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of offline and server on equal loads."""
    load = ServeLoad(
        requests=args.requests,
        concurrency=args.concurrency,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        vocab_size=args.vocab_size,
    )
    options = {
        "tp": args.tp, "threads": args.threads, "dtype": args.dtype, "max_batch_size": args.batch,
        "load_format": args.load_format, "scheduling": args.scheduling,
    }  # fmt: skip
    if args.tokenizer:
        options["tokenizer"] = args.tokenizer
    flags = [part for name, value in options.items()
             for part in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    rounds, same = [], 0
    for seed in range(args.rounds):
        own, warm = replace(load, seed=seed), replace(load, seed=1000 + seed)
        with LLM(args.model, **options) as llm:
            alone(llm, warm)
            first, expected = alone(llm, own)
        with serving(args.model, flags) as (url, pid):
            served(url, pid, warm)
            second = served(url, pid, own)
            same += sum(a == b for a, b in zip(texts(url, own), expected, strict=True))
        ratio = second["output_tokens_per_s"] / first["output_tokens_per_s"]
        rounds.append({"offline": first, "server": second, "ratio": ratio})
    return {"rounds": rounds, "texts": args.rounds * load.requests, "texts_equal": same}


def save(file: Path, run: dict[str, Any]) -> None:
    """Add a run to the list in `file`."""
    runs = json.loads(file.read_text()) if file.exists() else []
    kept = [each for each in runs if each["load"] != run["load"]]
    file.write_text(json.dumps([*kept, run], indent=1) + "\n")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder, or a published shape (random weights)")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--tokenizer")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32, help="slots")
    parser.add_argument("--concurrency", type=int, help="requests at once (default: all of them)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--scheduling", default="throughput")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    gc.collect()
    gc.freeze()  # The client's collections are not to walk over what it loaded.
    with TemporaryDirectory() as folder:
        if args.model in SHAPES and not Path(args.model).exists():
            named = with_texts(args.model, Path(folder))
            result = measure(argparse.Namespace(**vars(args) | named))
        else:
            result = measure(args)
    result |= {"what": "throughput over HTTP against LLM.generate", "machine": machine_info(),
               "load": {name: value for name, value in vars(args).items() if name != "out"},
               "command": " ".join(["python", *sys.argv])}  # fmt: skip
    if args.out is not None:
        save(args.out, result)
    for each in result["rounds"]:
        print(
            f"offline {each['offline']['output_tokens_per_s']:.0f}, server "
            f"{each['server']['output_tokens_per_s']:.0f} tokens/s: {each['ratio']:.0%}"
        )
    print(f"{result['texts_equal']} of {result['texts']} texts equal")
    return 0 if result["texts_equal"] == result["texts"] else 1


if __name__ == "__main__":
    sys.exit(main())
