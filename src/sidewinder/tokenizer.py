"""Text to token ids and back: the model's tokenizer, text that streams, and stop strings."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sidewinder.checkpoint.gguf_files import find_gguf
from sidewinder.checkpoint.gguf_tokenizer import load_gguf_tokenizer
from sidewinder.checkpoint.hub import resolve_model

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, or not one yet."""

CONTEXT_TOKENS = 6
"""Prompt tokens before the output that decide how its first token is written (leading spaces)."""

MOST_PENDING = 16
"""Tokens without a whole character after which none is on its way: a character has four at most."""
UNDECIDED = 3
"""Replacement characters at the end of such a text that the next tokens may still change."""


class Tokenizer:
    """A model's tokenizer, loaded when it is first needed.

    Args:
        source: local folder, GGUF file or hub id. A folder's own tokenizer files come before those
            in a GGUF file there.
        revision: hub revision.

    Every method raises ValueError if the tokenizer is missing or cannot be read.
    """

    def __init__(self, source: str, revision: str | None = None) -> None:
        self.source = source
        self._revision = revision

    @cached_property
    def _inner(self) -> Any:
        from transformers import AutoTokenizer

        try:
            # transformers would ask the hub for a name that is not there for a minute.
            folder = resolve_model(self.source, self._revision, weights=False)
            gguf = None if _has_tokenizer(folder) else find_gguf(folder)
            if gguf is not None:
                inner = load_gguf_tokenizer(gguf)
            else:
                inner = AutoTokenizer.from_pretrained(str(folder))
            # For some model types transformers makes an empty tokenizer where no file is found.
            if not inner.encode("a", add_special_tokens=False):
                raise ValueError("it has no vocabulary")
            return inner
        # transformers raises a dozen types for files that are missing, broken or of another kind.
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"no usable tokenizer in {self.source!r} ({type(error).__name__}: {first_line}); "
                "pass tokenizer=<folder or hub id>, or use token ids as prompts"
            ) from error

    def load(self) -> None:
        """Load it now, to know that it works."""
        assert self._inner is not None

    @property
    def inner(self) -> Any:
        """transformers' own tokenizer, for libraries that want it."""
        return self._inner

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end-of-text id."""
        token: int | None = self._inner.eos_token_id
        return token

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that `decode` can leave out."""
        return frozenset(self._inner.all_special_ids)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a prompt, with BOS where the tokenizer is configured to put one.

        Args:
            text: the prompt.
            special: put BOS; False for the continuation of a text.
        """
        ids: list[int] = self._inner.encode(text, add_special_tokens=special)
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The exact text of token ids: no tidying of spaces."""
        text: str = self._decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    @cached_property
    def _decode(self) -> Any:
        if self._inner.is_fast:
            # What transformers calls in the end; its checks on the way take most of the time.
            return self._inner.backend_tokenizer.decode
        return partial(self._inner.decode, clean_up_tokenization_spaces=False)

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation through the chat template, ready for the answer.

        Raises:
            ValueError: if there is no template, or it does not accept these messages.
        """
        if not self._inner.chat_template:
            raise ValueError(
                f"the tokenizer of {self.source!r} has no chat template; "
                "write the prompt yourself and use generate"
            )
        check_messages(messages)
        from jinja2 import TemplateError

        try:
            text = self._inner.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ValueError(f"the chat template rejects these messages: {error}") from error
        ids: list[int] = self._inner.encode(text, add_special_tokens=False)
        return ids


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def check_messages(messages: Sequence[dict[str, str]]) -> None:
    """Raise ValueError unless `messages` is a list of {"role": str, "content": str}."""
    example = '[{"role": "user", "content": "Hello"}]'
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"messages={messages!r} is not a list of messages; use {example}")
    for message in messages:
        parts = [message.get(key) for key in ("role", "content")] if _is_dict(message) else []
        if not parts or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{message!r} is not a message with role and content; use {example}")


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


class Detokenizer:
    """Text of an output that grows token by token; never part of a character.

    The new text is the difference of two decodings that start a few tokens back, because how a
    token is written can depend on those before it. What ends in the middle of a character decodes
    to replacement characters: these stay back until the character is complete, or cannot be.

    Args:
        tokenizer: decodes token ids.
        context: the prompt; its last tokens count as what comes before.
        skip_special_tokens: leave special tokens out.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
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
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """Return what was held back: the text ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop` (and not all of it)."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
