"""The text of one output: detokenisation and stop strings joined."""

from collections.abc import Sequence

from sidewinder.detokenizer import Detokenizer, StopStrings
from sidewinder.engine.request import FinishReason
from sidewinder.sampling import SamplingParams
from sidewinder.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into the text that may be shown; tells when a stop string ends it.

    Args:
        tokenizer: None where none is at hand: the text stays empty.
        params: stop strings and what they leave in the text.
        prompt: decides how the first token is written.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, params: SamplingParams, prompt: Sequence[int]
    ) -> None:
        self._params = params
        self._detokenizer = None
        if tokenizer is not None:
            self._detokenizer = Detokenizer(
                tokenizer, prompt, params.skip_special_tokens, params.kept_special_tokens
            )
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._n_tokens = 0

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found."""
        return self._stops.found

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found is not None

    def push(self, token: int, reason: FinishReason | None) -> str:
        """Add one token; `reason` tells that it is the last. Returns the text to show now."""
        if self._detokenizer is None:
            return ""
        self._n_tokens += 1
        if reason == "stop" and not self._params.include_stop_str_in_output:
            return self._search(self._detokenizer.finish(), last=True)
        piece = self._detokenizer.push(token)
        if reason is not None:
            piece += self._detokenizer.finish()
        return self._search(piece, last=reason is not None)

    def _search(self, piece: str, last: bool) -> str:
        if self._n_tokens < self._params.min_tokens:
            return piece
        shown = self._stops.push(piece)
        if last and not self.stopped:
            shown += self._stops.finish()
        return shown
