"""`sidewinder generate`: continue a prompt, streaming the text."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sidewinder.cli.options import (
    add_engine_options,
    add_json_option,
    add_sampling_options,
    engine_options,
    print_json,
    sampling_params,
)
from sidewinder.llm import LLM, RequestOutput

DESCRIPTION = """\
Continue a prompt and stream the text to standard output; figures (tokens/s, TTFT, TPOT) go to
standard error. With --json the text is not streamed: one JSON object carries text and figures."""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("generate", help="continue a prompt", description=DESCRIPTION)
    add_engine_options(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="read it from a UTF-8 file; - for stdin"
    )
    add_sampling_options(parser, max_tokens=256)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate; returns the exit status."""
    params = sampling_params(args)
    prompt = args.prompt if args.prompt is not None else read_text(args.prompt_file)
    with LLM(args.model, progress=True, **engine_options(args)) as llm:
        if args.json:
            [output] = llm.generate([prompt], params)
            print_json({"text": output.text, **figures(output)})
            return 0
        for piece in llm.stream(prompt, params):
            print(piece.text, end="", flush=True)
            if piece.output is not None:
                output = piece.output
    print(flush=True)
    print(summary(output), file=sys.stderr)
    return 0


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
        "ttft_s": metrics.ttft_s,
        "tpot_s": metrics.tpot_s,
        "total_s": metrics.total_s,
        "output_tokens_per_s": len(output.token_ids) / metrics.total_s,
    }


def summary(output: RequestOutput) -> str:
    """One line for people."""
    values = figures(output)
    tpot = f"{values['tpot_s'] * 1e3:.1f} ms" if values["tpot_s"] is not None else "-"
    return (
        f"[{values['output_tokens']} tokens, {values['output_tokens_per_s']:.1f} tokens/s, "
        f"TTFT {values['ttft_s'] * 1e3:.1f} ms, TPOT {tpot}, finished: {values['finish_reason']}]"
    )
