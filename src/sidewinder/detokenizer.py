"""Text that streams: detokenisation token by token, and stop strings."""

from collections.abc import Sequence

from sidewinder.tokenizer import REPLACEMENT, Tokenizer

CONTEXT_TOKENS = 6
"""Prompt tokens before the output that decide how its first token is written (leading spaces)."""

MOST_PENDING = 16
"""Tokens without a whole character after which none is on its way: a character has four at most."""
UNDECIDED = 3
"""Replacement characters at the end of such a text that the next tokens may still change."""


class Detokenizer:
    """Text of an output that grows token by token; never part of a character.

    The new text is the difference of two decodings that start a few tokens back, because how a
    token is written can depend on those before it. What ends in the middle of a character decodes
    to replacement characters: these stay back until the character is complete, or cannot be.

    Args:
        tokenizer: decodes token ids.
        context: the prompt; its last tokens count as what comes before.
        skip_special_tokens: leave special tokens out.
        kept: but not these.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        skip_special_tokens: bool = True,
        kept: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        special = tokenizer.special_tokens if skip_special_tokens and kept else {}
        if not special.keys().isdisjoint(kept):
            # Then they are left out here, one by one.
            self._skip = False
            self._skipped = frozenset(special.values()) - {special.get(text) for text in kept}
        self._window = list(context[-CONTEXT_TOKENS:])
        before = self._decode()
        if before.endswith(REPLACEMENT):  # the prompt ends inside a character: not ours to complete
            self._window, before = [], ""
        self._n_before = len(self._window)
        self._n_emitted = len(before)

    def push(self, token: int) -> str:
        """Add one token; return the text that is now certain."""
        if token in self._skipped:
            return ""
        self._window.append(token)
        text = self._decode()
        certain = text.rstrip(REPLACEMENT)
        piece = certain[self._n_emitted :]
        self._n_emitted = max(self._n_emitted, len(certain))
        if piece and len(certain) == len(text):
            self._start_window_at_last_piece()
        elif len(self._window) - self._n_before > MOST_PENDING:
            piece += self._shorten_window(text)
        return piece

    def finish(self) -> str:
        """Return what was held back; nothing more is pushed after that."""
        text = self._decode()
        piece = text[self._n_emitted :]
        self._n_emitted = max(self._n_emitted, len(text))
        return piece

    def _start_window_at_last_piece(self) -> None:
        """Forget tokens that cannot matter any more; those of the last piece stay as context."""
        self._window = self._window[self._n_before :]
        self._n_before = len(self._window)
        self._n_emitted = len(self._decode())

    def _shorten_window(self, text: str) -> str:
        """Give up on the older ones of many tokens without a whole character, or without any text:
        a model may go on with them, and all would be decoded again with each new one.

        Returns what of `text` is certain then.
        """
        pending = self._window[self._n_before :]
        self._window = self._window[: self._n_before] + pending[-MOST_PENDING // 2 :]
        rest = self._decode()
        n_open = len(rest) - len(rest.rstrip(REPLACEMENT))
        n_held = min(UNDECIDED, n_open, len(text) - self._n_emitted)
        piece = text[self._n_emitted : len(text) - n_held]
        self._n_emitted = len(rest) - n_held
        return piece

    def _decode(self) -> str:
        if not self._window:
            return ""
        return self._tokenizer.decode(self._window, self._skip)


class StopStrings:
    """Looks for stop strings in text that arrives in pieces.

    Text that may be the beginning of a stop string is held back until it is decided.

    Args:
        stops: the strings to look for.
        include: let the stop string itself through.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Add text; return what may be shown. `found` is set once a stop string is complete."""
        assert self.found is None, "text after its end"
        text = self._held + piece
        places = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if places:
            start, self.found = min(places, key=lambda place: place[0])
            self._held = ""
            return text[: start + len(self.found)] if self._include else text[:start]
        n_held = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """Return what was held back: the text ended without a stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop` (and not all of it)."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
