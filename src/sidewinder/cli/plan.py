"""`sidewinder plan`: who holds what, and what crosses ranks, without loading a weight."""

import argparse
from typing import Any

import torch

from sidewinder.checkpoint.hub import resolve_model
from sidewinder.cli.options import add_json_option, print_json
from sidewinder.config import load_model_config
from sidewinder.parallel.devices import DTYPES, resolve_dtype
from sidewinder.planning import format_plan, plan_report

DESCRIPTION = """\
Show how MODEL is split over ranks: for every parameter its rule, this rank's shape and bytes; the
collectives of a layer and of a token; and each rank's bytes of weights, state and KV cache.
Only config.json is read."""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("plan", help="show the sharding plan", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="model folder or Hugging Face hub id")
    parser.add_argument(
        "--tp", type=int, default=1, metavar="N", help="number of ranks (default: 1)"
    )
    parser.add_argument("--dtype", default="auto", metavar="X", help="dtype of the weights")
    parser.add_argument("--state-dtype", default="float32", metavar="X", help="dtype of the state")
    parser.add_argument("--revision", default=None, metavar="X", help="revision of a hub model")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns the exit status."""
    if args.tp < 1:
        raise ValueError(f"--tp {args.tp} is not a number of ranks; use 1 or more")
    if args.state_dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--state-dtype {args.state_dtype!r} is unknown; use float32 or bfloat16")
    config = load_model_config(resolve_model(args.model, args.revision, weights=False))
    dtype = resolve_dtype(args.dtype, config.dtype, torch.device("cpu"))
    report = plan_report(config, args.tp, dtype, DTYPES[args.state_dtype])
    if args.json:
        print_json(report)
    else:
        print(format_plan(report))
    return 0
