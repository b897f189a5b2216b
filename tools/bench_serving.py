"""Throughput over HTTP against `LLM.generate` on the same prompts; writes one JSON object.

    python tools/bench_serving.py models/mamba --out result.json
    python tools/bench_serving.py mamba-130m --batch 16 --prompt-tokens 64 --output-tokens 32

Server and offline take turns, with new prompts each round, so that both find their caches cold and
the machine's moods meet both. Streams have one event per token; the client runs in this process.
Afterwards the server's texts of the last round are compared with the offline ones (greedy).
"""

import argparse
import asyncio
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
def serving(model: str, options: list[str]) -> Iterator[str]:
    """`sidewinder serve` as a process of its own; gives its address."""
    program = "import sys; from sidewinder.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", model, "--port", "0", *options]
    # A file, not a pipe: nobody reads on once the server listens, and a full pipe would stop it.
    with TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield _address(log, process)
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
        "load_format": args.load_format,
    }  # fmt: skip
    if args.tokenizer:
        options["tokenizer"] = args.tokenizer
    flags = [part for name, value in options.items()
             for part in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    rounds = []
    with LLM(args.model, **options) as llm, serving(args.model, flags) as url:
        offline(llm, replace(load, seed=1000))
        asyncio.run(bench_serve(url, replace(load, seed=1000), Objectives()))
        for seed in range(args.rounds):
            own = replace(load, seed=seed)
            rate, expected = offline(llm, own)
            (served,) = asyncio.run(bench_serve(url, own, Objectives()))["passes"]
            assert not served["failed"], served["errors"]
            ratio = served["output_tokens_per_s"] / rate
            rounds.append({"offline_output_tokens_per_s": rate, "server": served, "ratio": ratio})
        same = sum(a == b for a, b in zip(texts(url, own), expected, strict=True))
    return {"rounds": rounds, "texts": load.requests, "texts_equal": same}


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
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
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    for each in result["rounds"]:
        print(
            f"offline {each['offline_output_tokens_per_s']:.0f}, server "
            f"{each['server']['output_tokens_per_s']:.0f} tokens/s: {each['ratio']:.0%}"
        )
    print(f"{result['texts_equal']} of {result['texts']} texts equal")
    return 0 if result["texts_equal"] == result["texts"] else 1


if __name__ == "__main__":
    sys.exit(main())
