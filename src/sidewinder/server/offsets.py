"""Where in a completion's text its tokens begin."""

from collections.abc import Sequence

from sidewinder.detokenizer import Detokenizer
from sidewinder.engine.intake import Call
from sidewinder.tokenizer import REPLACEMENT, Tokenizer


class Offsets:
    """Counts the characters of a text as its tokens come.

    All tokens that share a character begin where it does; special tokens that are left out of the
    text begin where the next one does.

    Args:
        tokenizer: decodes token ids.
        call: the request: its prompt, and which special tokens its text has.
        echoed: where each token of the prompt begins, if the text does with it (`prompt_starts`).
        opening: what the text begins with: the prompt, for `echo`; else nothing.
    """

    def __init__(
        self, tokenizer: Tokenizer, call: Call, echoed: Sequence[int] = (), opening: str = ""
    ) -> None:
        request = call.request
        self._echoed = iter(echoed)
        self._n_characters = len(opening)
        skip, kept = request.params.skip_special_tokens, request.params.kept_special_tokens
        self._detokenizer = Detokenizer(tokenizer, request.prompt, skip, kept)

    def next(self, token: int) -> int:
        """Where `token`, the next one, begins; those of an echoed prompt come first."""
        echoed = next(self._echoed, None)
        if echoed is not None:
            return echoed
        piece = self._detokenizer.push(token)
        start = self._n_characters + _n_held(piece)
        self._n_characters += len(piece)
        return start


def _n_held(piece: str) -> int:
    """Characters of `piece`, which a token completed, that are of tokens before it: bytes of no
    character, which could have been the beginning of one."""
    return piece.rfind(REPLACEMENT) + 1


def prompt_starts(tokenizer: Tokenizer, prompt: Sequence[int], text: str) -> list[int]:
    """Where in `text` each token of `prompt` begins. BOS may be before it."""
    detokenizer, starts, end = Detokenizer(tokenizer, skip_special_tokens=False), [], 0
    for token in prompt:
        piece = detokenizer.push(token)
        starts.append(end + _n_held(piece))
        end += len(piece)
    n_before = end + len(detokenizer.finish()) - len(text)
    return [min(max(start - n_before, 0), len(text)) for start in starts]
