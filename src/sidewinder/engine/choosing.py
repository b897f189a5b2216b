"""What each running sequence gets of a step."""

from collections.abc import Sequence as List

from sidewinder.engine.drafts import room_for_drafts
from sidewinder.engine.limits import Limits
from sidewinder.engine.plan import SequenceStep
from sidewinder.engine.request import Sequence

Part = tuple[Sequence, SequenceStep]


def decodes(
    decoding: List[Sequence], free_slots: List[int], limits: Limits, beside_prompts: bool
) -> list[Part]:
    """One token of each, and drafts behind it as far as there are slots and rows for them.

    Args:
        decoding: all sequences whose prompts have run.
        free_slots: which drafts may use.
        limits: of a step.
        beside_prompts: prompts want rows of the step, too; drafts then take half of them at most.
    """
    # Each of them once finished its prompt in a step that had room for it beside the others.
    assert len(decoding) <= limits.max_step_tokens
    rows = limits.max_step_tokens - len(decoding)
    if beside_prompts:
        rows = rows // 2 if limits.drafts_beside_prompts else 0
    n_drafts = min(room_for_drafts(len(decoding)), rows)
    free, chosen = free_slots[:n_drafts], list[Part]()
    for sequence in decoding:
        step = sequence.decode_step(limits.page_size, free[: limits.max_drafts])
        free = free[len(step.draft_slots) :]
        chosen.append((sequence, step))
    return chosen


def chunks(prefilling: List[Sequence], tokens_left: int, limits: Limits) -> list[Part]:
    """Chunks of prompts, the first ones first.

    While several want to run, each takes at most half of the tokens that are left.
    """
    chosen = list[Part]()
    rows_left = limits.max_logit_rows
    for position, sequence in enumerate(prefilling):
        alone = position == len(prefilling) - 1
        n_tokens = min(sequence.n_before_boundary, tokens_left if alone else -(-tokens_left // 2))
        if sequence.request.return_logits:
            n_tokens = min(n_tokens, rows_left)
            rows_left -= n_tokens
        if n_tokens:
            chosen.append((sequence, sequence.prefill_step(n_tokens, limits.page_size)))
            tokens_left -= n_tokens
    return chosen
