"""Body of POST /v1/messages. Unknown fields are refused by name, as everywhere."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sidewinder.chat.tools import MAX_TOOLS
from sidewinder.server.schemas import Body, Bool, Extras, Int, Stops, Text


class _Block(Body):
    """What clients say of caching changes nothing: states of all beginnings are kept."""

    cache_control: dict[str, Any] | None = None


class TextBlock(_Block):
    """Text."""

    type: Literal["text"]
    text: Text
    citations: list[Any] | None = None


class ThinkingBlock(_Block):
    """What the model thought; its signature is not needed."""

    type: Literal["thinking"]
    thinking: Text
    signature: str | None = None


class ToolUseBlock(_Block):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: Text
    input: dict[str, Any]
    caller: dict[str, Any] | None = None


def _blocks_of(*kinds: str) -> Callable[[Any], Any]:
    """A validator: a text is one block, and blocks of other kinds are refused by name."""

    def check(value: Any) -> Any:
        if isinstance(value, str):
            return [{"type": "text", "text": value}]
        for block in value if isinstance(value, list) else ():
            kind = block.get("type") if isinstance(block, dict) else None
            if kind not in kinds:
                raise ValueError(
                    f"a block of type {kind!r} is not supported here; give {', '.join(kinds)}"
                )
        return value

    return check


TextBlocks = Annotated[
    list[TextBlock],
    BeforeValidator(_blocks_of("text"), json_schema_input_type=str | list[TextBlock]),
]


class ToolResultBlock(_Block):
    """What a called tool gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextBlocks | None = None
    is_error: Bool | None = None


Block = Annotated[
    TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]
Blocks = Annotated[
    list[Block],
    BeforeValidator(
        _blocks_of("text", "thinking", "tool_use", "tool_result"),
        json_schema_input_type=str | list[Block],
    ),
]


class Message(Body):
    """One message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class Tool(_Block):
    """A tool of the client's."""

    type: Literal["custom"] | None = None
    name: Text
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: Bool | None = None
    eager_input_streaming: Bool | None = None


def _own_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in (None, "custom"):
        raise ValueError(f"{kind!r} is not supported; give tools with an input_schema of their own")
    return value


class ToolChoice(Body):
    """What the answer may do with the tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: Bool | None = None


class Thinking(Body):
    """Sets the chat template's variable `enable_thinking`; no budget is kept."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Int | None = None
    display: Literal["summarized"] | None = None


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """The form of the text; `effort` is the chat template's variable `reasoning_effort`."""

    format: SchemaFormat | None = None
    effort: Text | None = None


class Metadata(Body):
    """Changes nothing."""

    user_id: str | None = None


class CountRequest(Body):
    """Body of POST /v1/messages/count_tokens: what the prompt is made of."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    system: TextBlocks | None = None
    tools: (
        Annotated[
            list[Annotated[Tool, BeforeValidator(_own_tool, json_schema_input_type=Tool)]],
            Field(max_length=MAX_TOOLS),
        ]
        | None
    ) = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(CountRequest, Extras):
    """Body of POST /v1/messages."""

    max_tokens: Int
    stop_sequences: Stops | None = None
    stream: Bool | None = None
    # What these ask for changes no answer.
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
