"""Options that several subcommands share; defaults are read from the config classes."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from sidewinder.bench.shapes import SHAPES, is_shape, write_shape
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.checkpoint.hub import resolve_model
from sidewinder.config import EngineConfig, ModelConfig, load_model_config
from sidewinder.sampling import SamplingParams
from sidewinder.writable import check_file

_ENGINE_DEFAULTS = {field.name: field.default for field in fields(EngineConfig)}
_ENGINE_OPTIONS: list[tuple[str, type, str]] = [
    ("tp", int, "number of tensor-parallel ranks"),
    ("device", str, "auto, cpu or cuda"),
    ("dtype", str, "auto (the checkpoint's), float32, bfloat16 or float16"),
    (
        "weight_dtype",
        str,
        "auto (as dtype), int8 or int4: large matrices, while loading",
    ),
    ("state_dtype", str, "dtype of the recurrent state: float32 or bfloat16"),
    ("all_reduce", str, "sums over ranks: auto, exact, int8, int6, int4 or a policy file"),
    ("all_reduce_kl", float, "mean KL that sums may cost; needs eval --sensitivity once"),
    ("rotate", bool, "rotate the residual stream, so that no channel of a sum stands out"),
    ("overlap", str, "sums hidden behind computation: auto, none, x_proj, out_proj or both"),
    ("thresholds", str, "JSON file that pins what is measured of sums at start-up"),
    ("threads", int, "CPU threads per rank (default: usable cores / tp)"),
    ("revision", str, "revision of a hub model"),
    ("tokenizer", str, "tokenizer folder, .gguf file or hub id, when it is not the model's"),
    ("max_model_len", int, "longest prompt plus output, in tokens"),
    ("max_batch_size", int, "most sequences that run at once"),
    ("max_step_tokens", int, "most tokens in one step; longer prompts go in chunks"),
    ("speculate", int, "most tokens guessed from the text and checked in one step; 0: none"),
    ("scheduling", str, "throughput, or latency: prompts slow decodes down less than twice"),
    ("kv_cache_tokens", int, "hybrids: tokens that the KV cache holds"),
    ("state_cache_bytes", int, "bytes per rank for states of prefixes; 0: none (default: auto)"),
    ("state_cache_host_bytes", int, "GPU: bytes of host memory per rank behind it (default: auto)"),
    ("state_cache_dtype", str, "kept states: auto (as they are), bfloat16 or int8"),
    ("state_cache_dir", str, "folder for states that outlive the process (default: none)"),
    ("state_cache_disk_bytes", int, "most bytes in that folder"),
    ("state_cache_interval", int, "tokens between two kept states at a prompt's beginning"),
    (
        "cuda_graphs",
        str,
        "auto (steps are repeated without Python between kernels where they can be) or off",
    ),
    ("launch", str, "process (start the ranks) or torchrun (be one of them)"),
    ("timeout_s", float, "seconds after which a silent rank is declared dead"),
    ("load_format", str, "auto (weights of the checkpoint) or random (config only)"),
    ("generation_config", str, "auto (its sampling where requests leave it open) or none"),
]

_SAMPLING_OPTIONS: list[tuple[str, type, str]] = [
    ("max_tokens", int, "most new tokens"),
    ("min_tokens", int, "new tokens before the text may end"),
    ("temperature", float, "0 is greedy (default: the model's generation config, else 1)"),
    ("top_k", int, "sample among the k likeliest tokens; 0: all (default: the model's, too)"),
    ("top_p", float, "among the likeliest that hold this probability (default: the model's, too)"),
    ("min_p", float, "at least so likely, next to the likeliest one (default: the model's, too)"),
    ("repetition_penalty", float, "above 1 makes seen tokens rarer (default: the model's, too)"),
    ("presence_penalty", float, "subtracted once from tokens seen in the output"),
    ("frequency_penalty", float, "subtracted per occurrence in the output"),
    ("seed", int, "same seed, same text, whatever the batch around it"),
]


def utf8(argument: str) -> str:
    """A text from the command line, whose bytes Python does not decode where the locale is C; not
    for names of files, which it reads as it has them."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add(group: Any, options: list[tuple[str, type, str]], defaults: dict[str, Any]) -> None:
    for name, kind, text in options:
        default = defaults.get(name)
        shown = f"{text} (default: {default})" if default is not None else text
        if kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(_flag(name), action=action, default=argparse.SUPPRESS, help=text)
            continue
        group.add_argument(
            _flag(name), type=kind, default=argparse.SUPPRESS, metavar="X", help=shown
        )


def add_engine_options(
    parser: argparse.ArgumentParser, only: Sequence[str] | None = None, shapes: bool = False
) -> None:
    """Add MODEL and every engine option (or those named); absent ones keep `EngineConfig`'s
    defaults. `shapes` says that MODEL may be a published shape, too."""
    text = "model folder, .gguf file or hub id"
    text = "model folder, .gguf file, hub id or published shape" if shapes else text
    parser.add_argument("model", metavar="MODEL", help=text)
    options = [option for option in _ENGINE_OPTIONS if only is None or option[0] in only]
    _add(parser.add_argument_group("engine"), options, _ENGINE_DEFAULTS)


def add_sampling_options(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Add the sampling options; `max_tokens` is this command's own default length."""
    defaults = {field.name: field.default for field in fields(SamplingParams)}
    group = parser.add_argument_group("sampling")
    _add(group, _SAMPLING_OPTIONS, defaults | {"max_tokens": max_tokens})
    stop = group.add_argument("--stop", action="append", type=utf8, metavar="TEXT")
    stop.help = "end before this text (repeatable)"
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end token")
    parser.set_defaults(default_max_tokens=max_tokens)


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add `--output`, a file for the raw result, and `--json`."""
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the raw result here, too"
    )
    add_json_option(parser)


def check_output(args: argparse.Namespace) -> None:
    """Raise ValueError now if `--output` cannot be written, not after the measurement."""
    if args.output:
        check_file(args.output, "--output")


def give_result(
    args: argparse.Namespace, result: dict[str, Any], show: Callable[[dict[str, Any]], None]
) -> None:
    """Write the result where `--output` says, and print it: as `--json`, or by `show`."""
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print_json(result)
    else:
        show(result)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json`: the last line of standard output is one JSON object."""
    parser.add_argument(
        "--json", action="store_true", help="print figures as one JSON object, on the last line"
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The engine options that were given, as keyword arguments of `LLM`."""
    return {name: getattr(args, name) for name, _, _ in _ENGINE_OPTIONS if hasattr(args, name)}


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The sampling options as `SamplingParams`."""
    given = {name: getattr(args, name) for name, _, _ in _SAMPLING_OPTIONS if hasattr(args, name)}
    given.setdefault("max_tokens", args.default_max_tokens)
    return SamplingParams(**given, stop=tuple(args.stop or ()), ignore_eos=args.ignore_eos)


@contextmanager
def model_of(args: argparse.Namespace) -> Iterator[str]:
    """MODEL as `LLM` takes it: a published shape becomes a folder with its config.json.

    Raises:
        ValueError: for a shape whose weights nobody said to draw.
    """
    if not is_shape(args.model):
        yield args.model
        return
    if getattr(args, "load_format", None) != "random":
        raise ValueError(
            f"{args.model!r} is a published shape, which has no weights; run random ones with "
            "--load-format random, or give a model's folder or hub id"
        )
    with tempfile.TemporaryDirectory() as folder:
        yield str(write_shape(args.model, Path(folder)))


def tokenizer_of(model: str, options: dict[str, Any]) -> str:
    """Where the tokenizer is. `LLM` looks at one that is named before it loads weights.

    Raises:
        ValueError: if the model, whose own it is, is not there or not supported: transformers reads
            its configuration for the tokenizer, and would have us blame that.
    """
    if options.get("tokenizer"):
        return str(options["tokenizer"])
    folder = resolve_model(model, options.get("revision"), weights=False)
    load_model_config(folder)
    return str(folder)


def architecture_of(model: str, revision: str | None) -> ModelConfig:
    """The architecture of a folder, a hub id (config.json only) or a published shape.

    Raises:
        ValueError: if there is no such model, or its configuration is not supported.
    """
    if is_shape(model):
        return parse_model_config(SHAPES[model] | {"dtype": "bfloat16"})
    return load_model_config(resolve_model(model, revision, weights=False))


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(values, ensure_ascii=False), flush=True)
