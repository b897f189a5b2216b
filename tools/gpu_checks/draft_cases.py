"""Steps with drafts: what the kernels take for one text's token and eight drafts behind it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gpu_checks.case import Case
from gpu_checks.context import MODELS, Context
from sidewinder.config import ModelConfig
from sidewinder.engine import scheduler
from sidewinder.engine.drafts import Drafter
from sidewinder.state.batch import Sequences, pack

MakeCase = Callable[[Context, ModelConfig, str, Sequences], Case]
"""Makes an operator's case of a model, a load's name and its sequences."""

N_DRAFTS = 8
WRONG_DRAFTS = 7
"""Of the engine's steps."""
DRAFT_MODELS = (MODELS[0], MODELS[-1])
"""That the engine runs with drafts: of Mamba, and of Mamba-2, whose states are eight times as
large."""


def draft_cases(
    context: Context, config: ModelConfig, operators: Sequence[MakeCase]
) -> Iterator[Case]:
    """Operators that read a state and leave some, by Triton's kernels: others have no chains."""
    if context.dry_run and not context.ahead:
        return
    rows = 1 + N_DRAFTS
    seqs = pack(
        [[0]] * rows, list(range(rows)), [1] * rows, device=context.device, chains=(0, rows)
    ).seqs
    for make in operators:
        case = make(context, config, "", seqs)
        operator, read = case.name.split(",")[0], 4 * config.d_state * config.d_inner
        if operator == "causal_conv1d":
            read = (config.d_conv - 1) * config.d_inner * context.dtype.itemsize
        # Every row leaves a state, but only one is read.
        yield Case(
            "drafts", f"{N_DRAFTS} drafts, {operator}", case.make, case.bytes - N_DRAFTS * read
        )


class WrongDrafter(Drafter):
    """Drafts what a random model hardly ever draws: the text's first token."""

    def draft(self, most: int) -> tuple[int, ...]:
        return (self._text[0],) * min(most, WRONG_DRAFTS)


@contextmanager
def wrong_drafts() -> Iterator[None]:
    """Inside, engines that speculate have such drafts."""
    setattr(scheduler, "Drafter", WrongDrafter)  # noqa: B010
    try:
        yield
    finally:
        setattr(scheduler, "Drafter", Drafter)  # noqa: B010
