"""`sidewinder eval`: perplexity of a text by chunks, and what quantised sums change in it."""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sidewinder.agreement import Agreement
from sidewinder.bounded_context import check_context, score_in_context
from sidewinder.checkpoint.hub import resolve_model
from sidewinder.cli.generate import read_text
from sidewinder.cli.options import add_engine_options, add_json_option, engine_options, print_json
from sidewinder.config import EngineConfig, ModelConfig, engine_config, load_model_config
from sidewinder.evaluation import compare_policies
from sidewinder.llm import LLM
from sidewinder.parallel.devices import resolve_device, resolve_dtype
from sidewinder.sensitivity import (
    measured_by,
    policy_for,
    sensitivity_file,
    sweep,
)
from sidewinder.sharding.dims import check_tp
from sidewinder.tokenizer import Tokenizer
from sidewinder.writable import check_file

DESCRIPTION = """\
Measure how well MODEL predicts a text: perplexity per token, and bits per byte, which compares
models with different tokenizers. The text may have any length: it runs in chunks, the state carried
along, so each token has all text before it as context. With --context N it has N tokens at most and
half of them at least: models with attention lose beyond the length that they were trained with.

With --rotate, or with --tp 2 or more and --all-reduce int8, int6, int4, a policy file or a budget
--all-reduce-kl, the model with these sums is compared with the plain one that sums exactly: KL
divergence, how often the likeliest token is the same, and the share of the sums' bytes that is
quantised. The text is then cut into windows that start with empty state.

With --sensitivity and --tp 2 or more, every sum is quantised alone in every codec, and what that
costs is stored beside the model (or in FILE); --all-reduce-kl chooses codecs from it."""

BESIDE_MODEL = ""
WINDOW = 1024
"""Tokens of a window where sums are compared."""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "eval",
        help="perplexity of a text, and what quantised sums change",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_engine_options(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; - for stdin")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="use only the first N tokens")
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="windows of N tokens that overlap by half, instead of the whole text",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help=f"tokens that share a state where sums are compared (default: {WINDOW})",
    )
    parser.add_argument(
        "--sensitivity",
        nargs="?",
        const=BESIDE_MODEL,
        metavar="FILE",
        help="measure what each sum costs in each codec, and store it (default: beside the model)",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Subject:
    """What is measured: options with `model` a folder and `dtype` resolved, sizes, and the text,
    which begins with `n_opening` tokens that the tokenizer puts before every text."""

    engine: EngineConfig
    model: ModelConfig
    token_ids: list[int]
    n_opening: int
    n_bytes: int
    window: int


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    if args.max_tokens is not None and args.max_tokens < 2:
        raise ValueError(f"--max-tokens {args.max_tokens} is too few to predict; use 2 or more")
    if args.context is not None:
        check_context(args.context)
    subject = _subject(args)
    engine = subject.engine
    quantises = engine.tp > 1 and not policy_for(engine, subject.model).is_exact
    compares = args.sensitivity is not None or engine.rotate or quantises
    if compares and args.context is not None:
        raise ValueError("--context is for one model alone; where sums are compared use --window")
    if args.window is not None and not compares:
        raise ValueError("--window is for comparisons of sums, and nothing is compared; "
                         "use --context")  # fmt: skip
    started = time.perf_counter()
    if args.sensitivity is not None:
        values, show = _sensitivities(subject, args.sensitivity), _print_sensitivities
    elif compares:
        values, show = _comparison(subject), _print_comparison
    else:
        options = engine_options(args)
        values, show = _perplexity(subject, options, args.context), _print_perplexity
    _finish(subject, values, time.perf_counter() - started, show, args.json)
    return 0


def _subject(args: argparse.Namespace) -> Subject:
    text = read_text(args.text)
    engine = engine_config(model=args.model, progress=True, **engine_options(args))
    weights = engine.load_format != "random"
    folder = resolve_model(engine.model, engine.revision, weights=weights)
    model = load_model_config(folder)
    check_tp(model, engine.tp)
    device = resolve_device(engine.device, 0, engine.tp)
    dtype = str(resolve_dtype(engine.dtype, model.dtype, device)).removeprefix("torch.")
    tokenizer = Tokenizer(engine.tokenizer or str(folder))
    token_ids = tokenizer.encode(text)
    if args.max_tokens is not None and args.max_tokens < len(token_ids):
        token_ids = token_ids[: args.max_tokens]
        text = tokenizer.decode(token_ids)
    engine = replace(engine, model=str(folder), dtype=dtype)
    opening = tokenizer.encode("")
    n_opening = len(opening) if token_ids[: len(opening)] == opening else 0
    window = WINDOW if args.window is None else args.window
    return Subject(engine, model, token_ids, n_opening, len(text.encode("utf-8")), window)


def _perplexity(subject: Subject, options: dict[str, Any], context: int | None) -> dict[str, Any]:
    tokens = subject.token_ids
    with LLM(subject.engine.model, progress=True, **options) as llm:
        if context is None:
            score = llm.perplexity(tokens, progress=True)
        else:
            score = score_in_context(llm, tokens, subject.n_opening, context, progress=True)
        return {"perplexity": score.perplexity, "collectives": llm.report()["collectives"]}


def _comparison(subject: Subject) -> dict[str, Any]:
    policy = policy_for(subject.engine, subject.model)
    [found] = compare_policies(
        subject.engine, subject.model, [policy], subject.token_ids, subject.window
    )
    shares = policy.shares(subject.model)
    return {
        **agreement_figures(found),
        "window": subject.window,
        "quantised_share": 1 - shares.get("exact", 0.0),
        "shares": shares,
        "policy": policy.to_json(),
    }


def agreement_figures(found: Agreement) -> dict[str, Any]:
    """The figures of a comparison, JSON-able."""
    figures = asdict(found)
    del figures["n_predicted"]
    return figures | {
        "perplexity_change": found.perplexity / found.reference_perplexity - 1,
        "top1_error": found.top1_error,
    }


def _sensitivities(subject: Subject, file: str) -> dict[str, Any]:
    engine, model = subject.engine, subject.model
    if engine.tp == 1:
        raise ValueError("tp=1 sums nothing; measure sensitivity with --tp 2 or more")
    target = Path(file) if file != BESIDE_MODEL else sensitivity_file(engine)
    _check_writable(target)
    policies = [policy for _, _, policy in sweep(model)]
    found = compare_policies(
        engine, model, policies, subject.token_ids, subject.window, same_weights=True
    )
    measured = measured_by(engine, model, found)
    measured.write(target)
    return {"perplexity": found[0].reference_perplexity, "file": str(target), **asdict(measured)}


def _check_writable(file: Path) -> None:
    """Refuse at once what would fail after minutes."""
    if file.suffix != ".json":
        raise ValueError(f"--sensitivity {file}: the file's name must end in .json")
    if not file.parent.is_dir():
        raise ValueError(f"--sensitivity {file}: {file.parent} is not a folder")
    check_file(file, "--sensitivity")


def _finish(
    subject: Subject,
    values: dict[str, Any],
    elapsed: float,
    show: Callable[[dict[str, Any]], None],
    as_json: bool,
) -> None:
    n_tokens = len(subject.token_ids)
    values |= {
        "bits_per_byte": math.log2(values["perplexity"]) * (n_tokens - 1) / subject.n_bytes,
        "tokens": n_tokens,
        "predicted_tokens": n_tokens - 1,
        "bytes": subject.n_bytes,
        "tokens_per_s": n_tokens / elapsed,
    }
    if as_json:
        print_json(values)
        return
    show(values)
    print(f"text           {n_tokens} tokens, {subject.n_bytes} bytes")
    print(f"[{values['tokens_per_s']:.0f} tokens/s]", file=sys.stderr)


def _print_perplexity(values: dict[str, Any]) -> None:
    print(f"perplexity     {values['perplexity']:.4f} per token")
    print(f"bits per byte  {values['bits_per_byte']:.4f}")


def _print_comparison(values: dict[str, Any]) -> None:
    _print_perplexity(values)
    change = 100 * values["perplexity_change"]
    print(f"exact sums     {values['reference_perplexity']:.4f} perplexity: {change:+.3f} %")
    print(f"KL divergence  {values['mean_kl']:.6f} mean, {values['p99_kl']:.6f} P99")
    same, error, ties = (100 * values[key] for key in ("top1_agreement", "top1_error", "top1_ties"))
    print(f"same top token {same:.2f} ± {error:.2f} %, and {ties:.2f} % are ties")
    shares = ", ".join(f"{100 * part:.0f} % {name}" for name, part in values["shares"].items())
    print(f"bytes of sums  {shares}")


def _print_sensitivities(values: dict[str, Any]) -> None:
    codecs = list(values["together"])
    width = max(len(site) for site in values["sites"])
    print(" " * width, *(f"{codec:>9}" for codec in codecs))
    rows = values["sites"] | {"all": values["together"]}
    for site, costs in rows.items():
        print(f"{site:{width}}", *(f"{costs[codec]:9.6f}" for codec in codecs))
    print(f"mean KL in nats, stored in {values['file']}")
