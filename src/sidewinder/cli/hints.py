"""What to say of options that do not exist: those of other servers, and misspellings."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches

ELSEWHERE = {
    "--model": "give MODEL itself, without an option",
    "--tensor-parallel-size": "it is --tp here",
    "-tp": "it is --tp here",
    "--pipeline-parallel-size": "there are tensor-parallel ranks only: --tp",
    "--data-parallel-size": "replicas are Ray Serve's (docs/scale-out.md)",
    "--max-num-seqs": "it is --max-batch-size here",
    "--max-num-batched-tokens": "it is --max-step-tokens here",
    "--quantization": "it is --weight-dtype here; quantised checkpoints need no option",
    "--speculative-config": "drafts from the text itself are --speculate N here",
    "--enforce-eager": "it is --cuda-graphs off here",
    "--gpu-memory-utilization": "memory follows --max-batch-size and --state-cache-bytes",
    "--kv-cache-memory-bytes": "it is --kv-cache-tokens here (hybrids only)",
    "--enable-prefix-caching": "it is on; --state-cache-bytes says how much",
    "--no-enable-prefix-caching": "it is --state-cache-bytes 0 here",
    "--enable-auto-tool-choice": "it is on where the chat template shows tools",
    "--trust-remote-code": "no code of a checkpoint is ever run; leave it out",
}
"""Options of vLLM, and what is here instead."""


def unknown(
    parser: argparse.ArgumentParser, args: argparse.Namespace, arguments: Sequence[str]
) -> str:
    """The error for `arguments` that the command in `args` does not know, with what was meant."""
    chosen = _chosen(parser, args)
    known = [name for action in chosen._actions for name in action.option_strings]
    hints = []
    for given in arguments:
        name = given.partition("=")[0]
        if name in ELSEWHERE:
            hints.append(f"{name}: {ELSEWHERE[name]}")
        elif name.startswith("--") and (near := get_close_matches(name, known, n=1)):
            hints.append(f"{name}: did you mean {near[0]}?")
    listed = f"{chosen.prog} --help lists the options"
    return "; ".join([f"unrecognized arguments: {' '.join(arguments)}", *hints, listed])


def _chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that `args` are of."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below: argparse.ArgumentParser = action.choices[getattr(args, action.dest)]
            return _chosen(below, args)
    return parser
