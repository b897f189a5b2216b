"""`sidewinder eval`: perplexity of a text by chunks, and what quantised sums change in it."""

import argparse
import math
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from sidewinder.agreement import AgreementMeter
from sidewinder.cli.generate import read_text
from sidewinder.cli.options import add_engine_options, add_json_option, engine_options, print_json
from sidewinder.llm import LLM

DESCRIPTION = """\
Measure how well MODEL predicts a text: perplexity per token, and bits per byte, which compares
models with different tokenizers. The text may have any length: it runs in chunks, the state carried
along. With --all-reduce int8, int6, int4 or a policy file, and --tp 2 or more, a second engine
sums exactly, and the two are compared: KL divergence and how often the likeliest token is the
same."""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("eval", help="perplexity of a text", description=DESCRIPTION)
    add_engine_options(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; - for stdin")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="use only the first N tokens")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    if args.max_tokens is not None and args.max_tokens < 2:
        raise ValueError(f"--max-tokens {args.max_tokens} is too few to predict; use 2 or more")
    text = read_text(args.text)
    options = engine_options(args)
    with LLM(args.model, progress=True, **options) as llm:
        token_ids = llm.encode(text)
        if args.max_tokens is not None and args.max_tokens < len(token_ids):
            token_ids = token_ids[: args.max_tokens]
            text = llm.decode(token_ids)
        started = time.perf_counter()
        if llm.config.all_reduce in ("auto", "exact") or llm.config.tp == 1:
            figures = {"perplexity": llm.perplexity(token_ids, progress=True).perplexity}
        else:
            with LLM(args.model, progress=True, **options | {"all_reduce": "exact"}) as exact:
                figures = _compare(exact, llm, token_ids)
        elapsed = time.perf_counter() - started
        path = llm.report()["collectives"]
    n_bytes, n_predicted = len(text.encode("utf-8")), len(token_ids) - 1
    values = figures | {
        "bits_per_byte": math.log2(figures["perplexity"]) * n_predicted / n_bytes,
        "tokens": len(token_ids),
        "predicted_tokens": n_predicted,
        "bytes": n_bytes,
        "tokens_per_s": len(token_ids) / elapsed,
        "collectives": path,
    }
    if args.json:
        print_json(values)
    else:
        _print_figures(values)
    return 0


def _compare(exact: LLM, llm: LLM, token_ids: list[int]) -> dict[str, float]:
    """Figures of `llm` beside those of `exact`, over the same text."""
    if len(token_ids) < 2:
        raise ValueError("one token predicts nothing; give a text of at least two tokens")
    next_tokens, row = torch.tensor(token_ids[1:]), 0
    meter = AgreementMeter()
    with tqdm(total=len(token_ids), desc="tokens", unit="") as bar:
        blocks = zip(exact.stream_logits(token_ids), llm.stream_logits(token_ids), strict=True)
        for expected, found in blocks:
            tokens = next_tokens[row : row + len(found)]
            meter.add(expected[: len(tokens)], found[: len(tokens)], tokens)
            row += len(found)
            bar.update(len(found))
    agreement = asdict(meter.result())
    del agreement["n_predicted"]
    return agreement


def _print_figures(values: dict[str, Any]) -> None:
    print(f"perplexity     {values['perplexity']:.4f} per token")
    print(f"bits per byte  {values['bits_per_byte']:.4f}")
    if "mean_kl" in values:
        print(f"exact sums     {values['reference_perplexity']:.4f} perplexity")
        print(f"KL divergence  {values['mean_kl']:.6f} mean, {values['p99_kl']:.6f} P99")
        print(f"same top token {100 * values['top1_agreement']:.2f} %")
    print(f"text           {values['tokens']} tokens, {values['bytes']} bytes")
    print(f"[{values['tokens_per_s']:.0f} tokens/s]", file=sys.stderr)
