"""How families write calls of functions, and reasoning, into their answers."""

import re
from dataclasses import dataclass
from typing import Literal

THINK, END_THINK = "<think>", "</think>"
"""Tags around a model's reasoning."""


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls of functions.

    Attributes:
        name: what options call it.
        families: which models write so, for people.
        begin, end: tags around a call, or around all of them.
        body: what a call is: "json", an object with `name` and `arguments`; "xml",
            `<function=NAME>` with a `<parameter=KEY>` for each argument.
        before, after: between the tags and what they hold, as models are shown it.
        between: calls that share a pair of tags; None: each has its own.
    """

    name: str
    families: str
    begin: str
    end: str
    body: Literal["json", "xml"] = "json"
    before: str = "\n"
    after: str = "\n"
    between: str | None = None


FORMATS = {
    each.name: each
    for each in (
        ToolFormat("hermes", "Granite-4.0-H", "<tool_call>", "</tool_call>"),
        ToolFormat("qwen3_coder", "Nemotron-3", "<tool_call>", "</tool_call>", "xml"),
        ToolFormat(
            "falcon", "Falcon-H1", "<tool_call>", "</tool_call>", "json", "\n[\n", "\n]\n", ",\n"
        ),
        ToolFormat(
            "jamba", "Jamba", "<tool_calls>", "</tool_calls>", "json", "[\n    ", "\n]", ",\n    "
        ),
        ToolFormat(
            "nemotron", "Nemotron-Nano-v2", "<TOOLCALL>", "</TOOLCALL>", "json", "[", "]", ", "
        ),
    )
}
"""By name; `hermes`, `qwen3_coder` and `jamba` are other servers' names, too. Reading takes any of
the JSON forms between a format's tags; the rest is for writing."""

_LIST = re.compile(r"<tool_call>(\s|\\n)*\[")


def tool_format_of(template: str) -> ToolFormat | None:
    """The format that a chat template teaches; None if it teaches none of ours."""
    if "<tool_call>" not in template:
        return next((each for each in FORMATS.values() if each.begin in template), None)
    if "<function=" in template:
        return FORMATS["qwen3_coder"]
    return FORMATS["falcon" if _LIST.search(template) else "hermes"]


def reasons(template: str) -> bool:
    """Whether a chat template speaks of reasoning between think tags."""
    return END_THINK in template


TOOL_PARSERS = ("auto", "none", *FORMATS)
REASONING_PARSERS = ("auto", "none", "think")
"""What the server's options may be."""
