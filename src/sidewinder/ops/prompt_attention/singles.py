"""Mixed steps: single tokens lead the batch, and `paged_attention` serves all of them at once."""

from collections.abc import Callable

from torch import Tensor

from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex


def behind_singles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: KVIndex | PromptIndex,
    scale: float,
    paged_attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor],
    prompts: Callable[[], Tensor],
) -> Tensor:
    """As `reference.prompt_attention`.

    Args:
        q, k, v, index, scale: of the operator.
        paged_attention: the backend's.
        prompts: the result `[T, H, E]` but for the rows of the leading single tokens, which hold
            anything; called where there are other rows.
    """
    n = index.n_singles
    if not n:
        return prompts()
    singles = paged_attention(q[:n], k, v, index.singles.read, index.singles.lengths, scale)
    if n == len(q):
        return singles
    y = prompts()
    y[:n] = singles
    return y
