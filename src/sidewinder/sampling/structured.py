"""What form a text must have: JSON, a regular expression, one of a few texts, or a grammar."""

import json as json_text
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

KINDS = ("json", "json_object", "regex", "choice", "grammar")

MAX_TEXT = 1 << 20
"""Most characters of a schema, regular expression or grammar."""


@dataclass(frozen=True)
class StructuredOutput:
    """The form of a text; exactly one is given.

    Attributes:
        json: a JSON schema, as a dictionary or as its JSON text (kept as text).
        json_object: any JSON object.
        regex: a regular expression that the whole text matches (no look-around, no back
            references).
        choice: the text is one of these.
        grammar: a context-free grammar whose first rule is `start` (Lark) or `root` (GBNF, with
            `::=`).
        after: free text that ends with this comes before: the end of a model's reasoning, say.
            Beside one of the forms.

    Raises:
        ValueError: unless exactly one is given, and it is of its type. Whether it can be compiled
            is found when a request is made with it.
    """

    json: str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.json_object, bool):
            raise ValueError(f"json_object={self.json_object!r} is not True or False")
        object.__setattr__(self, "json", _schema_text(self.json))
        object.__setattr__(self, "choice", _choices(self.choice))
        given = [name for name in KINDS if getattr(self, name) not in (None, False, ())]
        if len(given) != 1:
            named = ", ".join(given) or "none"
            raise ValueError(
                f"structured output: {named} given; give exactly one of {', '.join(KINDS)}"
            )
        for name in ("regex", "grammar", "after"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name}={value!r} is not a text; give a non-empty one")
        for name in ("json", "regex", "grammar", "after"):
            if len(getattr(self, name) or "") > MAX_TEXT:
                raise ValueError(
                    f"structured output: {name} has more than {MAX_TEXT} characters; shorten it"
                )


class Constraint(Protocol):
    """Says what the next token of one text may be."""

    def allowed(self) -> bytes:
        """One bit per id of the vocabulary, the lowest bit of each byte first."""
        ...

    def take(self, token: int) -> None:
        """The text goes on with `token`, which was allowed."""
        ...

    def draft(
        self, suggested: Sequence[int], most: int
    ) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        """At most so many next tokens, and what is allowed behind each: those that must come, else
        of the suggested ones as many as may. The text stays where it is."""
        ...


def _schema_text(schema: Any) -> str | None:
    """A JSON schema as one text, so that equal schemas are equal."""
    if schema is None:
        return None
    try:
        value = json_text.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(value, dict):
            raise ValueError("give an object")
        return json_text.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"json is not a JSON schema: {error}") from error


def _choices(choices: Any) -> tuple[str, ...]:
    if not isinstance(choices, list | tuple):
        raise ValueError(f"choice={choices!r} is not a list of texts")
    for text in choices:
        if not isinstance(text, str) or not text:
            raise ValueError(f"choice: {text!r} is not a text; use non-empty texts")
    if sum(map(len, choices)) > MAX_TEXT:
        raise ValueError(f"choice has more than {MAX_TEXT} characters; give fewer texts")
    return tuple(choices)
