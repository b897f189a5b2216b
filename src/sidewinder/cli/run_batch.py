"""`sidewinder run-batch`: a file of requests, answered offline."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sidewinder.cli.options import (
    add_engine_options,
    add_json_option,
    engine_options,
    model_of,
    print_json,
)
from sidewinder.writable import check_file

DESCRIPTION = """\
Answer a file of requests with MODEL, many at once, without a server: OpenAI's batch format, a JSON
object a line. Every answer is written when it is complete, so what an interrupted run has done is
kept: --resume goes on after it."""

EXAMPLES = """\
examples:
  sidewinder run-batch models/mamba -i examples/requests.jsonl -o answers.jsonl
  sidewinder run-batch models/mamba -i examples/requests.jsonl -o answers.jsonl --resume

a line of requests:
  {"custom_id": "1", "method": "POST", "url": "/v1/completions",
   "body": {"prompt": "def main(", "max_tokens": 32}}
urls: /v1/completions /v1/chat/completions /v1/responses. A body may name the model: as MODEL is
given, or as --served-model-name says.
a line of answers, in the order in which they end:
  {"id": ..., "custom_id": "1", "response": {"status_code": 200, "request_id": ..., "body": ...},
   "error": null}
Exit status: 0 all were answered, 1 some were refused (their body says why) or a rank failed, 2 bad
usage or input, 130 interrupted."""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "run-batch",
        help="answer a file of requests in OpenAI's batch format",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_engine_options(parser)
    files = parser.add_argument_group("files")
    files.add_argument("-i", "--input", type=Path, required=True, metavar="FILE", help="requests")
    files.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="answers")
    files.add_argument(
        "--resume", action="store_true", help="add to the output what it does not have yet"
    )
    files.add_argument(
        "--served-model-name", metavar="NAME", help="what bodies call the model (default: MODEL)"
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer the requests; returns the exit status."""
    # Imported here: the other commands need no web framework.
    from sidewinder.server.batch import answered, read_batch

    requests = read_batch(args.input)
    check_file(args.output, "--output")
    if args.output.exists() and args.output.samefile(args.input):
        raise ValueError(f"--output {args.output} is the file of requests; name another")
    done = answered(args.output) if args.resume else set()
    if not args.resume and args.output.exists() and args.output.stat().st_size:
        raise ValueError(f"{args.output} is there already; --resume adds to it, or name another")
    left = [request for request in requests if request.custom_id not in done]
    figures = {"requests": len(requests), "answered_before": len(requests) - len(left),
               "refused": 0, "prompt_tokens": 0, "output_tokens": 0}  # fmt: skip
    seconds = _answer(args, left, figures) if left else 0.0
    _tell(args, figures, seconds)
    return 1 if figures["refused"] else 0


def _answer(args: argparse.Namespace, left: list[Any], figures: dict[str, Any]) -> float:
    """Answer the requests that are `left`, and count them; returns the seconds it took."""
    from sidewinder.llm import LLM
    from sidewinder.server.batch import run_batch

    with (
        model_of(args) as model,
        args.output.open("a", encoding="utf-8") as output,
        LLM(model, progress=True, **engine_options(args)) as llm,
        tqdm(total=len(left), desc="requests", unit="") as bar,
    ):
        started_s = time.perf_counter()

        def write(answer: dict[str, Any]) -> None:
            output.write(json.dumps(answer, ensure_ascii=False) + "\n")
            output.flush()
            _count(figures, answer["response"])
            bar.update()

        run_batch(llm, left, write, args.served_model_name or args.model)
        return time.perf_counter() - started_s


def _count(figures: dict[str, Any], response: dict[str, Any]) -> None:
    usage = response["body"].get("usage") or {}
    figures["refused"] += response["status_code"] != 200
    for name, others in (("prompt_tokens", "input_tokens"), ("output_tokens", "completion_tokens")):
        figures[name] += usage.get(name, usage.get(others, 0))


def _tell(args: argparse.Namespace, figures: dict[str, Any], seconds: float) -> None:
    figures |= {
        "seconds": seconds,
        "output_tokens_per_s": figures["output_tokens"] / seconds if seconds else 0.0,
    }
    if args.json:
        print_json(figures)
        return
    n_new = figures["requests"] - figures["answered_before"]
    print(
        f"{n_new} requests, {figures['refused']} of them refused; "
        f"{figures['output_tokens']} tokens in {seconds:.1f} s, "
        f"{figures['output_tokens_per_s']:.0f} a second",
        file=sys.stderr,
    )
