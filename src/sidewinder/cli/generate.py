"""`sidewinder generate`: continue a prompt, streaming the text."""

import argparse
import sys
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidewinder.bench.shapes import is_shape
from sidewinder.cli.options import (
    add_engine_options,
    add_json_option,
    add_sampling_options,
    engine_options,
    model_of,
    print_json,
    sampling_params,
    tokenizer_of,
    utf8,
)
from sidewinder.engine.inputs import Prompt
from sidewinder.llm import LLM, Increment, RequestOutput

DESCRIPTION = """\
Continue a prompt and stream the text to standard output; figures (tokens/s, TTFT, TPOT) go to
standard error. With --json the text is not streamed: one JSON object carries text and figures.

With --prompt-ids, token ids go in and come out, and no tokenizer is needed. With --load-format
random MODEL may be a published shape (see `bench --help`); a text then needs --tokenizer."""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("generate", help="continue a prompt", description=DESCRIPTION)
    add_engine_options(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", type=utf8, metavar="TEXT", help="the text to continue")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="read it from a UTF-8 file; - for stdin"
    )
    prompt.add_argument(
        "--prompt-ids", type=token_ids, metavar="N,N,...", help="token ids instead of a text"
    )
    parser.add_argument(
        "--prediction-file", metavar="FILE",
        help="a text that the answer may largely repeat; with --speculate it comes sooner",
    )  # fmt: skip
    add_sampling_options(parser, max_tokens=256)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate; returns the exit status."""
    params, options = sampling_params(args), engine_options(args)
    prompt = _prompt(args)
    if args.prediction_file is not None:
        params = replace(params, prediction=read_text(args.prediction_file))
    with model_of(args) as model, warnings.catch_warnings():
        if isinstance(prompt, str):
            if is_shape(args.model) and "tokenizer" not in options:
                raise ValueError(
                    f"{args.model!r} is a published shape, which has no tokenizer; name one with "
                    "--tokenizer, or give token ids with --prompt-ids"
                )
            options["tokenizer"] = tokenizer_of(model, options)
        else:
            warnings.filterwarnings("ignore", "outputs have token ids and no text")
        with LLM(model, progress=True, **options) as llm:
            if args.json:
                [output] = llm.generate([prompt], params)
                print_json({"text": output.text, **figures(output)})
                return 0
            output = _show(llm.stream(prompt, params), as_ids=args.prompt_ids is not None)
    print(summary(output), file=sys.stderr)
    return 0


def _prompt(args: argparse.Namespace) -> Prompt:
    """The prompt, however it was given; an empty one is refused before anything is loaded."""
    if args.prompt_ids is not None:
        return list(args.prompt_ids)
    prompt = args.prompt if args.prompt is not None else read_text(args.prompt_file)
    if not prompt:
        raise ValueError("the prompt is empty; give at least one character")
    return str(prompt)


def _show(stream: Iterable[Increment], as_ids: bool) -> RequestOutput:
    """Print what comes, as text or as token ids; returns the whole."""
    before = ""
    for piece in stream:
        if as_ids:
            print(before + ",".join(map(str, piece.token_ids)), end="", flush=True)
            before = ","
        else:
            print(piece.text, end="", flush=True)
        output = piece.output
    print(flush=True)
    assert output is not None, "the last increment carries the output"
    return output


def token_ids(text: str) -> list[int]:
    """Numbers with commas between them.

    Raises:
        ArgumentTypeError: for anything else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} are not token ids; give numbers with commas between them, such as 5,6,7"
        ) from error


def read_text(path: str) -> str:
    """The UTF-8 text of a file, or of standard input for "-".

    Raises:
        ValueError: when the file is missing or not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def figures(output: RequestOutput) -> dict[str, Any]:
    """The figures of one generation, JSON-able; times in seconds."""
    metrics = output.metrics
    assert metrics.total_s is not None, "a finished output has its times"
    return {
        "finish_reason": output.finish_reason,
        "token_ids": list(output.token_ids),
        "prompt_tokens": len(output.prompt_token_ids),
        "output_tokens": len(output.token_ids),
        "draft_tokens": metrics.draft_tokens,
        "accepted_tokens": metrics.accepted_tokens,
        "ttft_s": metrics.ttft_s,
        "tpot_s": metrics.tpot_s,
        "total_s": metrics.total_s,
        "output_tokens_per_s": len(output.token_ids) / metrics.total_s,
    }


def summary(output: RequestOutput) -> str:
    """One line for people."""
    values = figures(output)
    tpot = f"{values['tpot_s'] * 1e3:.1f} ms" if values["tpot_s"] is not None else "-"
    drafts = ""
    if values["draft_tokens"]:
        drafts = f", {values['accepted_tokens']} of {values['draft_tokens']} drafts accepted"
    return (
        f"[{values['output_tokens']} tokens, {values['output_tokens_per_s']:.1f} tokens/s, "
        f"TTFT {values['ttft_s'] * 1e3:.1f} ms, TPOT {tpot}{drafts}, "
        f"finished: {values['finish_reason']}]"
    )
