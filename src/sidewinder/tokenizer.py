"""Text to token ids and back: the model's tokenizer, and its chat template."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sidewinder.checkpoint.gguf_files import find_gguf
from sidewinder.checkpoint.gguf_tokenizer import load_gguf_tokenizer
from sidewinder.checkpoint.hub import resolve_model
from sidewinder.messages import template_messages

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, or not one yet."""


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

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """All tokens that `decode` can leave out, by their text."""
        added = self._inner.added_tokens_decoder.items()
        named = zip(self._inner.all_special_tokens, self._inner.all_special_ids, strict=True)
        return dict(named) | {str(token): index for index, token in added if token.special}

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a prompt, with BOS where the tokenizer is configured to put one.

        Args:
            text: the prompt.
            special: put BOS; False for the continuation of a text.

        Raises:
            ValueError: if the text has half a character (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            wrong, at = text[error.start], error.start
            raise ValueError(
                f"the text is not valid Unicode: {wrong!r} at character {at}; decode it from the "
                "encoding that it is in"
            ) from error
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

    def chat_template(self, with_tools: bool = False) -> str:
        """The chat template; some tokenizers have another one for conversations with functions.

        Raises:
            ValueError: if there is none.
        """
        if not self._inner.chat_template:
            raise ValueError(
                f"the tokenizer of {self.source!r} has no chat template; "
                "write the prompt yourself and use generate"
            )
        template: str = self._inner.get_chat_template(tools=[{}] if with_tools else None)
        return template

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation through the chat template, ready for the answer.

        Args:
            messages: {"role": str, "content": str}, and whatever else the template reads; also as
                OpenAI's clients have them (`template_messages`).
            tools: functions in OpenAI's form.
            options: further variables of the template.

        Raises:
            ValueError: if there is no template, or it does not accept these messages.
        """
        knows_developers = "developer" in self.chat_template(bool(tools))
        shown = template_messages(messages, knows_developers)
        try:
            text: str = self._inner.apply_chat_template(
                shown,
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=True,
                **(options or {}),
            )
        # A template is a program from the checkpoint: it may raise what it likes.
        except Exception as error:
            raise ValueError(f"the chat template rejects these messages: {error}") from error
        return text

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids of `chat_text`."""
        return self.encode(self.chat_text(messages, tools, options), special=False)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
