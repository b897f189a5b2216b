"""How many prompt tokens may run beside decodes: the `latency` setting of the scheduler."""

SLOWDOWN = 1.6
"""A step with prompts may take so many times one without: below 2, because single steps vary."""

PROBE_STEPS = 16
"""After so many steps with prompts in a row, one without shows what a decode takes now."""

_QUICK, _SLOW = 0.4, 0.05
"""Weights of the newest step in a moving mean. What asks for fewer prompt tokens counts quickly and
what asks for more slowly: a single step that was held up must not bring the next ones too many."""


class Pacer:
    """Learns from the steps' times what a decode and a prompt token take.

    Times differ from process to process, so only one process may plan (not torchrun).
    """

    def __init__(self) -> None:
        self._decode_s: float | None = None
        self._token_s: float | None = None
        self._n_mixed = 0

    def prompt_tokens(self) -> int:
        """Prompt tokens for the next step, which also decodes."""
        if self._n_mixed >= PROBE_STEPS:
            return 0
        if self._decode_s is None or self._token_s is None:
            return 1
        allowed_s = (SLOWDOWN - 1) * self._decode_s
        return max(1, round(allowed_s / max(self._token_s, 1e-9)))

    def took(self, n_decodes: int, n_prompt_tokens: int, seconds: float) -> None:
        """A step ran so many decodes and prompt tokens in so many seconds."""
        if not n_prompt_tokens:
            self._n_mixed = 0
            if n_decodes:
                self._decode_s = _mean(self._decode_s, seconds, up=_SLOW, down=_QUICK)
        elif n_decodes:
            self._n_mixed += 1
            if self._decode_s is not None:
                # What is fixed in the cost of prompts is spread over the tokens: where more of them
                # hardly cost more, the next step takes more.
                each = max(0.0, seconds - self._decode_s) / n_prompt_tokens
                self._token_s = _mean(self._token_s, each, up=_QUICK, down=_SLOW)


def _mean(before: float | None, new: float, up: float, down: float) -> float:
    if before is None:
        return new
    return before + (up if new > before else down) * (new - before)
