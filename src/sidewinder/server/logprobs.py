"""Logprobs in OpenAI's shapes."""

from collections.abc import Iterable, Sequence
from typing import Any

from sidewinder.sampling import TokenLogprobs
from sidewinder.server.choice import Choice
from sidewinder.server.offsets import Offsets
from sidewinder.tokenizer import REPLACEMENT, Tokenizer


class Writer:
    """Writes logprobs in both of OpenAI's shapes.

    Args:
        tokenizer: names the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names: dict[int, str] = {}

    def completion_logprobs(
        self, choice: Choice, entries: Sequence[TokenLogprobs | None]
    ) -> dict[str, Any]:
        """`logprobs` of a completion's choice; `None` is the first token of an echoed prompt."""
        if choice.offsets is None:
            opening, echoed = choice.opening, choice.opening_starts
            choice.offsets = Offsets(self._tokenizer, choice.call, echoed, opening)
        first = choice.call.request.prompt[0]
        tokens = [first if entry is None else entry.token_id for entry in entries]
        return {
            "tokens": [self.name(token) for token in tokens],
            "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": [choice.offsets.next(token) for token in tokens],
        }

    def chat_logprobs(self, entries: Iterable[TokenLogprobs | None]) -> dict[str, Any]:
        """`logprobs` of a chat's choice."""
        content = [
            self._chat_token(entry.token_id, entry.logprob)
            | {"top_logprobs": [self._chat_token(*pair) for pair in entry.top]}
            for entry in entries
            if entry is not None
        ]
        return {"content": content, "refusal": None}

    def prompt_logprobs(
        self, entries: Iterable[TokenLogprobs | None]
    ) -> list[dict[str, Any] | None]:
        """`prompt_logprobs`, by token id: an extension that other servers have too."""
        return [None if entry is None else self._by_id(entry) for entry in entries]

    def name(self, token: int) -> str:
        """The text of one token by itself."""
        if token not in self._names:
            self._names[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return self._names[token]

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """By text, the better one where two tokens have the same; the token itself included."""
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(self.name(token), logprob)
        return top

    def _chat_token(self, token: int, logprob: float) -> dict[str, Any]:
        name = self.name(token)
        raw = None if REPLACEMENT in name else list(name.encode())
        return {"token": name, "logprob": logprob, "bytes": raw}

    def _by_id(self, entry: TokenLogprobs) -> dict[str, Any]:
        ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)}
        ranked[entry.token_id] = (entry.logprob, entry.rank)
        return {
            str(token): {"logprob": logprob, "rank": rank, "decoded_token": self.name(token)}
            for token, (logprob, rank) in ranked.items()
        }
