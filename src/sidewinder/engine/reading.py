"""What requests that only read their prompts bring, put together from the increments of steps."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sidewinder.engine.intake import Call
from sidewinder.engine.outputs import Increment


def join_logits(
    calls: Sequence[Call], increments: Iterable[Increment], vocab_size: int
) -> list[Tensor]:
    """Float32 `[len, vocab_size]` of every call's prompt; filled in place, as steps bring rows."""
    results = {call.request.id: torch.empty(len(call.request.prompt), vocab_size) for call in calls}
    n_filled = dict.fromkeys(results, 0)
    for part in increments:
        rows = torch.from_numpy(part.logits)
        start = n_filled[part.request_id]
        results[part.request_id][start : start + len(rows)] = rows
        n_filled[part.request_id] += len(rows)
    return list(results.values())


def join_logprobs(calls: Sequence[Call], increments: Iterable[Increment]) -> list[Tensor]:
    """Float32 `[len - 1]`: of the tokens of every call's prompt after the first."""
    logprobs: dict[int, list[float]] = {call.request.id: [] for call in calls}
    for part in increments:
        logprobs[part.request_id] += [own.logprob for own in part.scores if own is not None]
    return [torch.tensor(values, dtype=torch.float32) for values in logprobs.values()]
