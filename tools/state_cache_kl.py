"""What storing states in fewer bits costs the demo models; writes one JSON object.

    python tools/state_cache_kl.py --out benchmarks/results/state-cache-kl.json

Held-out text is cut into pieces. The state after the first tokens of a piece is stored and
resumed in each dtype, the following tokens run on it, and their predictions are compared with those
on the state as it was: KL divergence in nats per token.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidewinder.agreement import AgreementMeter
from sidewinder.bench.machine import machine_info
from sidewinder.collectives.base import SingleRank
from sidewinder.config import EngineConfig, load_model_config
from sidewinder.engine.plan import SequenceStep, StepPlan
from sidewinder.engine.runner import Runner, build_runner
from sidewinder.parallel.group import SINGLE
from sidewinder.state.cache.ops import Drop, Restore, Save
from sidewinder.state.spec import PAGE_SIZE
from sidewinder.tokenizer import Tokenizer

MODELS = ("mamba", "falcon-mamba", "mamba2", "zamba")
DTYPES = ("auto", "bfloat16", "int8")


def start(model: str, dtype: str) -> Runner:
    """One rank with the model in float32, whose kept states are stored in `dtype`."""
    engine = EngineConfig(
        model,
        device="cpu",
        dtype="float32",
        threads=1,
        max_batch_size=1,
        kv_cache_tokens=2048,
        state_cache_dtype=dtype,
    )
    return build_runner(engine, load_model_config(model), SINGLE, SingleRank())


def run(runner: Runner, tokens: Sequence[int], n_stored: int, logits: bool = False) -> Tensor:
    """Run `tokens` after `n_stored` others; their logits, if wanted."""
    n_pages = -(-(n_stored + len(tokens)) // PAGE_SIZE) if runner.pool.kv is not None else 0
    part = SequenceStep(0, tuple(tokens), n_stored, tuple(range(n_pages)), return_logits=logits)
    (result,) = runner.step(StepPlan((part,))).sequences
    return torch.from_numpy(result.logits) if logits else torch.empty(0)


def predictions(runner: Runner, tokens: Sequence[int], n_stored: int) -> Tensor:
    """Logits after the first `n_stored` tokens of a text, whose state was kept and resumed."""
    run(runner, tokens[:n_stored], 0)
    runner.apply((Save(0, 0), Restore(0, 0), Drop(0)))
    return run(runner, tokens[n_stored:], n_stored, logits=True)


def measure(model: str, text: str, n_stored: int, n_after: int, n_pieces: int) -> dict[str, Any]:
    """Figures of every dtype but the exact one."""
    tokens = Tokenizer(model).encode(text)
    size = n_stored + n_after
    pieces = [tokens[size * piece : size * (piece + 1)] for piece in range(n_pieces)]
    runners = {dtype: start(model, dtype) for dtype in DTYPES}
    meters = {dtype: AgreementMeter() for dtype in DTYPES[1:]}
    for piece in pieces:
        exact = predictions(runners["auto"], piece, n_stored)
        following = torch.tensor(piece[n_stored + 1 :])
        for dtype, meter in meters.items():
            rounded = predictions(runners[dtype], piece, n_stored)
            meter.add(exact[:-1], rounded[:-1], following)
    exact_bytes = runners["auto"].report().cache.state_bytes
    return {
        dtype: asdict(meter.result())
        | {"bytes": runners[dtype].report().cache.state_bytes / exact_bytes}
        for dtype, meter in meters.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--text", type=Path, default=Path("data/heldout.txt"))
    parser.add_argument("--stored", type=int, default=384, help="tokens in the state")
    parser.add_argument("--after", type=int, default=65, help="tokens that run on it")
    parser.add_argument("--pieces", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = args.text.read_text()[: 12 * args.pieces * (args.stored + args.after)]
    result = {
        "machine": machine_info(),
        "command": " ".join(["python", *sys.argv]),
        "stored_tokens": args.stored,
        "tokens_after": args.after,
        "pieces": args.pieces,
        "models": {
            name: measure(str(args.models / name), text, args.stored, args.after, args.pieces)
            for name in MODELS
        },
    }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
