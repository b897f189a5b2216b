"""Entry point: parses the command line, runs one subcommand, turns failures into exit statuses."""

import argparse
import codecs
import io
import os
import sys
import warnings
from collections.abc import Sequence

from sidewinder import __version__
from sidewinder.cli import bench, chat, compile, evaluate, generate, hints, plan, run_batch, serve
from sidewinder.cli.usage import shorten_usage
from sidewinder.logs import logger, writes_json

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; failed while running; bad usage or input; interrupted."""

DESCRIPTION = """\
Run selective state-space language models (Mamba, Falcon-Mamba, Mamba-2, Zamba, Zamba2, Bamba,
Granite-4.0-H, Nemotron-H, Falcon-H1, Jamba), tensor-parallel over any number of ranks, on CPUs or
GPUs."""

EXAMPLES = """\
examples:
  sidewinder generate models/mamba --prompt "def main(" --tp 2
  sidewinder chat models/mamba2
  sidewinder serve models/mamba2 --tp 2 --port 8000
  sidewinder run-batch models/mamba2 -i examples/requests.jsonl -o answers.jsonl
  sidewinder eval models/mamba --text data/heldout.txt
  sidewinder plan state-spaces/mamba-2.8b-hf --tp 4
  sidewinder compile state-spaces/mamba-2.8b-hf --gpu h100

MODEL is a folder with config.json and weights, a .gguf file, or a Hugging Face hub id.
Exit status: 0 done, 1 failed while running, 2 bad usage or input, 130 interrupted."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="sidewinder",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sidewinder {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (generate, chat, serve, run_batch, evaluate, bench, plan, compile):
        command.add_parser(subparsers)
    shorten_usage(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit status."""
    speak_utf8()
    try:
        parser = build_parser()
        if not (sys.argv[1:] if argv is None else argv):
            parser.print_help(sys.stderr)
            return BAD_USAGE
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.error(hints.unknown(parser, args, unknown))
    except SystemExit as exit_request:  # argparse exits by itself, after --help or on bad usage
        return int(exit_request.code or 0)
    warnings.formatwarning = _one_line
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); point stdout at nothing for the last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ValueError as error:
        return _report(f"error: {error}", BAD_USAGE)
    except (RuntimeError, OSError) as error:
        return _report(f"failed: {error}", FAILED)


def speak_utf8() -> None:
    """Python takes the terminal for ASCII where the locale is C and its UTF-8 mode is off; texts
    are not."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name == "ascii":
            stream.reconfigure(encoding="utf-8", errors=stream.errors)


def _one_line(message: Warning | str, *_where: object, **_line: object) -> str:
    """A warning as users of a command want it: without the place in our source."""
    return f"sidewinder: warning: {message}\n"


def _report(message: str, status: int) -> int:
    if writes_json():  # a server's, to its last line
        logger.error(message)
    else:
        print(f"sidewinder: {message}", file=sys.stderr)
    return status
