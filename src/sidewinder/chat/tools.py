"""What a conversation offers the model: functions, and whether it must call one."""

from dataclasses import dataclass, field
from typing import Any, Literal

NAME_CHARACTERS = "letters, digits, '_', '-' and '.'"
MAX_NAME = 128
MAX_TOOLS = 128
"""Most functions of one request."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: of letters, digits, '_', '-' and '.'; at most 128 characters.
        parameters: JSON schema of its arguments, an object; {} takes any.
        description: what it does, for the model.
        strict: the arguments must keep the schema.

    Raises:
        ValueError: for a name that is none of this, or parameters that are no object's schema.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    description: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        plain = self.name.replace("_", "a").replace("-", "a").replace(".", "a")
        if not (plain.isascii() and plain.isalnum() and len(self.name) <= MAX_NAME):
            raise ValueError(
                f"the function name {self.name!r} is not supported; use 1 to {MAX_NAME} "
                f"{NAME_CHARACTERS}"
            )
        if not isinstance(self.parameters.get("properties") or {}, dict):
            raise ValueError("parameters: 'properties' is not an object; give each name a schema")
        required = self.parameters.get("required") or []
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise ValueError("parameters: 'required' is not a list of names; give one")

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: OpenAI's form."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolChoice:
    """What the answer may do with the functions.

    Attributes:
        mode: "auto" lets the model decide, "required" makes it call at least one, "none" hides
            them from it.
        tools: those that may be called.
        parallel: more than one call may be made.
        is_named: the request named the one function that must be called.
    """

    mode: Literal["auto", "required", "none"] = "none"
    tools: tuple[Tool, ...] = ()
    parallel: bool = True
    is_named: bool = False

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar holds the answer to these functions."""
        return self.mode == "required" or (
            self.mode == "auto" and any(tool.strict for tool in self.tools)
        )
