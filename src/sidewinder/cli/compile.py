"""`sidewinder compile`: fills Triton's cache for a GPU that need not be here."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sidewinder.cli.options import (
    add_engine_options,
    add_json_option,
    architecture_of,
    engine_options,
    print_json,
)
from sidewinder.config import EngineConfig
from sidewinder.engine.ahead import launched_by
from sidewinder.ops.ahead import CACHE_VARIABLE, cache_folder, check_compiler, compile_all
from sidewinder.parallel.cores import usable_cores
from sidewinder.parallel.devices import resolve_dtype
from sidewinder.projection.devices import DEVICES, device_of
from sidewinder.writable import check_folder

DESCRIPTION = f"""\
Compile the GPU kernels that engines of MODEL launch, on a machine with or without a GPU: while a
container's image is built, say, so that its first start does not. Only config.json is read; the
name of a published shape (see `bench --help`) works without one.

The cache is Triton's: {CACHE_VARIABLE} names the folder, here and where the engine runs, which must
be at the same path there (Triton writes whole paths into it) and have the same versions of Triton
and Sidewinder. Give the options that the engine will have. docs/gpu.md says what is left to compile
on the first start."""

OPTIONS = ("tp", "dtype", "weight_dtype", "state_dtype", "all_reduce", "overlap", "revision",
           "speculate", "max_model_len", "max_batch_size", "max_step_tokens")  # fmt: skip
"""Those of the engine's that kernels depend on."""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "compile",
        help="compile GPU kernels ahead of time, without a GPU",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_engine_options(parser, only=OPTIONS, shapes=True)
    group = parser.add_argument_group("compilation")
    group.add_argument("--gpu", metavar="NAME", required=True, help=", ".join(DEVICES))
    group.add_argument(
        "--cache", type=Path, metavar="DIR",
        help=f"the folder to fill (default: {CACHE_VARIABLE}, else ~/.triton/cache)",
    )  # fmt: skip
    group.add_argument(
        "--processes", type=int, metavar="N", help="compile so many at once (default: all cores)"
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile; returns the exit status."""
    check_compiler()
    device = device_of(args.gpu)
    processes = usable_cores() if args.processes is None else args.processes
    if processes < 1:
        raise ValueError(f"--processes {processes} is too few; use 1 or more")
    cache = args.cache or cache_folder()
    check_folder(cache, "--cache" if args.cache else CACHE_VARIABLE)
    engine = EngineConfig(model=args.model, **engine_options(args))
    config = architecture_of(args.model, engine.revision)
    dtype = resolve_dtype(engine.dtype, config.dtype, torch.device("cuda"))
    engine = replace(engine, dtype=str(dtype).removeprefix("torch."))
    wanted = launched_by(engine, config, device, progress=True)
    with tqdm(total=len(wanted), desc="kernels", unit="") as bar:
        done = []
        for each in compile_all(wanted, device.capability, cache, processes):
            done.append(each)
            bar.update()
    found = sum(each.found for each in done)
    report = {
        "gpu": device.name,
        "capability": device.capability,
        "compiled": len(done) - found,
        "found": found,
        "cache": str(cache.resolve()),
    }
    if args.json:
        print_json(report)
    else:
        print(
            f"{report['compiled']} kernels compiled for {device.title} (sm_{device.capability}), "
            f"{found} found, in {report['cache']}"
        )
    return 0
