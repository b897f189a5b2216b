"""`sidewinder eval`: perplexity of a text, by chunks with carried state."""

import argparse
import math
import sys
import time
from typing import Any

from sidewinder.cli.generate import read_text
from sidewinder.cli.options import add_engine_options, add_json_option, engine_options, print_json
from sidewinder.llm import LLM

DESCRIPTION = """\
Measure how well MODEL predicts a text: perplexity per token, and bits per byte, which compares
models with different tokenizers. The text may have any length: it runs in chunks, the state carried
along."""


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
    with LLM(args.model, progress=True, **engine_options(args)) as llm:
        token_ids = llm.encode(text)
        if args.max_tokens is not None and args.max_tokens < len(token_ids):
            token_ids = token_ids[: args.max_tokens]
            text = llm.decode(token_ids)
        started = time.perf_counter()
        score = llm.perplexity(token_ids, progress=True)
        elapsed = time.perf_counter() - started
    n_bytes = len(text.encode("utf-8"))
    values = {
        "perplexity": score.perplexity,
        "bits_per_byte": -score.logprob / math.log(2) / n_bytes,
        "tokens": len(token_ids),
        "predicted_tokens": score.n_predicted,
        "bytes": n_bytes,
        "tokens_per_s": len(token_ids) / elapsed,
    }
    if args.json:
        print_json(values)
    else:
        _print_figures(values)
    return 0


def _print_figures(values: dict[str, Any]) -> None:
    print(f"perplexity     {values['perplexity']:.4f} per token")
    print(f"bits per byte  {values['bits_per_byte']:.4f}")
    print(f"text           {values['tokens']} tokens, {values['bytes']} bytes")
    print(f"[{values['tokens_per_s']:.0f} tokens/s]", file=sys.stderr)
