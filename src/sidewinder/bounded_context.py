"""How well a model predicts a text when every token has a bounded context."""

import math
from collections.abc import Sequence

from tqdm import tqdm

from sidewinder.llm import LLM, Score


def check_context(context: int) -> None:
    """Raise ValueError for windows that predict nothing."""
    if context < 2:
        raise ValueError(f"a context of {context} tokens predicts nothing; use 2 or more")


def score_in_context(
    llm: LLM, token_ids: Sequence[int], n_opening: int, context: int, progress: bool = False
) -> Score:
    """Score every token after the first once, with a bounded context before it.

    Windows of `context` tokens overlap by half and start with empty state, so a token sees at least
    the half before it (in the first window: all there is).

    Args:
        llm: the model.
        token_ids: the text.
        n_opening: leading tokens (BOS) that every window begins with, besides its own.
        context: tokens of a window.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: for windows that predict nothing.
    """
    check_context(context)
    opening, text = list(token_ids[:n_opening]), token_ids[n_opening:]
    stride = context // 2
    n_seen = context - stride
    starts = range(0, max(1, len(text) - n_seen), stride)
    total, n_predicted = 0.0, 0
    with tqdm(total=len(text), desc="tokens", unit="", disable=not progress) as bar:
        for first in range(0, len(starts), llm.config.max_batch_size):
            group = starts[first : first + llm.config.max_batch_size]
            parts = [opening + list(text[start : start + context]) for start in group]
            for start, logprobs in zip(group, llm.score(parts), strict=True):
                # Entry i is of the window's token i + 1; those seen before were scored before.
                fresh = logprobs[n_opening + n_seen - 1 :] if start else logprobs
                total += math.fsum(fresh.tolist())
                n_predicted += len(fresh)
                bar.update(len(fresh))
    return Score(total, n_predicted)
