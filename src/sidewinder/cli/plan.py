"""`sidewinder plan`: who holds what, what crosses ranks, and how fast that would be elsewhere."""

import argparse
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from sidewinder.cli.options import add_json_option, architecture_of, print_json
from sidewinder.config import CHOICES, ModelConfig
from sidewinder.parallel.devices import DTYPES, resolve_dtype
from sidewinder.planning import format_plan, plan_report
from sidewinder.projection.calibration import Calibration, read_calibration
from sidewinder.projection.devices import DEVICES, device_of
from sidewinder.projection.links import LINKS, Link, link_of
from sidewinder.projection.model import Load, Setting
from sidewinder.projection.report import format_projection, projection_report

DESCRIPTION = """\
Show how MODEL is split over ranks: for every parameter its rule, this rank's shape and bytes; the
collectives of a layer and of a token; and each rank's bytes of weights, state and KV cache.
Only config.json is read; the name of a published shape (see `bench --help`) works without one.

With --gpu (and --link for more than one rank): also the projected TTFT, TPOT, throughput and memory
of a load, for every policy of sums. docs/projection.md says how, and what is assumed."""

_LOAD_DEFAULTS = {each.name: each.default for each in fields(Load)}


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help="show the sharding plan, and the projected speed on GPUs",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="model folder, .gguf file, hub id or published shape"
    )
    parser.add_argument(
        "--tp", type=int, default=1, metavar="N", help="number of ranks (default: 1)"
    )
    parser.add_argument("--dtype", default="auto", metavar="X", help="dtype of the weights")
    parser.add_argument(
        "--weight-dtype", default="auto", metavar="X",
        help="auto (as --dtype), int8 or int4: of the large matrices",
    )  # fmt: skip
    parser.add_argument("--state-dtype", default="float32", metavar="X", help="dtype of the state")
    parser.add_argument("--revision", default=None, metavar="X", help="revision of a hub model")
    _add_projection_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def _add_projection_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("projection")
    group.add_argument("--gpu", metavar="NAME", help=", ".join(DEVICES))
    group.add_argument("--link", metavar="NAME", help=", ".join(LINKS))
    group.add_argument(
        "--link-gbps", type=float, metavar="X", help="GB/s of the link, one rank, one direction"
    )
    group.add_argument(
        "--link-us", type=float, metavar="X", help="microseconds of one exchange on the link"
    )
    for name, text in (
        ("batch", "requests that arrive together"),
        ("prompt", "tokens of each prompt"),
        ("output", "tokens generated for each"),
        ("max_step_tokens", "most tokens in a prefill step"),
    ):
        default = _LOAD_DEFAULTS[name]
        group.add_argument(
            "--" + name.replace("_", "-"), type=int, default=default, metavar="N",
            help=f"{text} (default: {default})",
        )  # fmt: skip
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="measured efficiencies (tools/gpu_suite.py)",
    )
    group.add_argument(
        "--hide-sums", action="store_true", help="sums travel behind other work where they can"
    )


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns the exit status."""
    if args.tp < 1:
        raise ValueError(f"--tp {args.tp} is not a number of ranks; use 1 or more")
    if args.state_dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--state-dtype {args.state_dtype!r} is unknown; use float32 or bfloat16")
    if args.weight_dtype not in CHOICES["weight_dtype"]:
        choices = " or ".join(CHOICES["weight_dtype"])
        raise ValueError(f"--weight-dtype {args.weight_dtype!r} is unknown; use {choices}")
    if args.gpu is None:
        _refuse_projection_options(args)
    config = architecture_of(args.model, args.revision)
    place = torch.device("cpu" if args.gpu is None else "cuda")
    dtype = resolve_dtype(args.dtype, config.dtype, place)
    report = plan_report(config, args.tp, dtype, DTYPES[args.state_dtype], args.weight_dtype)
    text = format_plan(report)
    if args.gpu is not None:
        setting = _setting(args, config, dtype)
        load = Load(args.batch, args.prompt, args.output, args.max_step_tokens)
        report["projection"] = projection_report(setting, load)
        text += "\n\n" + format_projection(report["projection"])
    if args.json:
        print_json(report)
    else:
        print(text)
    return 0


def _refuse_projection_options(args: argparse.Namespace) -> None:
    """Without a GPU there is no projection that they could be about."""
    without = dict.fromkeys(("link", "link_gbps", "link_us", "calibration")) | {"hide_sums": False}
    for name, default in (without | _LOAD_DEFAULTS).items():
        if getattr(args, name) != default:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is of a projection; say for which --gpu")


def _setting(args: argparse.Namespace, config: ModelConfig, dtype: torch.dtype) -> Setting:
    calibration = read_calibration(args.calibration) if args.calibration else Calibration()
    return Setting(
        config=config,
        tp=args.tp,
        dtype=dtype,
        device=device_of(args.gpu),
        link=_link(args),
        calibration=calibration,
        state_dtype=DTYPES[args.state_dtype],
        hide_sums=args.hide_sums,
        weight_dtype=args.weight_dtype,
    )


def _link(args: argparse.Namespace) -> Link:
    if args.link is None and args.tp > 1:
        raise ValueError(f"--gpu with --tp {args.tp} needs --link; known: {', '.join(LINKS)}")
    link = link_of(args.link or "pcie4")
    for option, value in (("--link-gbps", args.link_gbps), ("--link-us", args.link_us)):
        if value is None:
            continue
        if not 0 < value < math.inf:
            raise ValueError(f"{option} {value} is not a positive number")
        given = (
            {"bytes_per_s": value * 1e9}
            if option == "--link-gbps"
            else {"exchange_s": value * 1e-6}
        )
        link = replace(link, source="given on the command line", **given)
    return link
