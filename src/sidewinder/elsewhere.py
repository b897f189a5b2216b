"""Options that do not exist here: what is meant by those of other engines, and by misspellings."""

import re
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


def meant(option: str, known: Sequence[str]) -> str | None:
    """What to give instead of `option`, written as on the command line, or None."""
    if option in ELSEWHERE:
        return ELSEWHERE[option]
    near = get_close_matches(option, known, n=1) if option.startswith("--") else []
    return f"did you mean {near[0]}?" if near else None


def meant_keyword(name: str, known: Sequence[str]) -> str | None:
    """The same of a keyword argument, with the names that keywords have."""
    hint = meant(_flag(name), [_flag(each) for each in known])
    return hint and re.sub("--[a-z-]+", lambda found: found[0][2:].replace("-", "_"), hint)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
