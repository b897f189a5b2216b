"""Body of POST /v1/responses. Unknown fields are refused by name, as everywhere."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sidewinder.chat.tools import MAX_TOOLS
from sidewinder.server.schemas import Body, Bool, Extras, Int, JsonSchema, Stops, Text


class TextPart(Body):
    """A part of a message; what answers had beside their text may be sent back."""

    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class _Item(Body):
    id: str | None = None
    status: str | None = None


class MessageItem(_Item):
    """A message of the conversation."""

    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]


class CallItem(_Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: Text
    arguments: Text


class OutputItem(_Item):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Text | list[TextPart]


class ReasoningText(Body):
    """A part of what the model thought."""

    type: Literal["reasoning_text"]
    text: Text


class ReasoningItem(_Item):
    """What the model thought before its answer."""

    type: Literal["reasoning"]
    summary: list[Any] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


def _with_types(value: Any) -> Any:
    """A message's item may come without its type."""
    if not isinstance(value, list):
        return value
    return [
        {"type": "message", **item} if isinstance(item, dict) and "role" in item else item
        for item in value
    ]


Item = Annotated[MessageItem | CallItem | OutputItem | ReasoningItem, Field(discriminator="type")]


class FunctionTool(Body):
    """A function that may be called."""

    type: Literal["function"]
    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Bool | None = None


class NamedChoice(Body):
    """The function to call."""

    type: Literal["function"]
    name: Text


class PlainFormat(Body):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(JsonSchema):
    """JSON of a schema."""

    type: Literal["json_schema"]


class TextOptions(Body):
    """The form of the text; nothing makes it longer or shorter."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Body):
    """`effort` is a variable of the chat template; there are no summaries."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class StreamOptions(Body):
    """Nothing is padded to hide its length, whatever is asked."""

    include_obfuscation: Bool | None = None


class ResponseRequest(Extras):
    """Body of POST /v1/responses."""

    model: str | None = None
    input: Annotated[
        Text | Annotated[list[Item], Field(min_length=1)], BeforeValidator(_with_types)
    ]
    instructions: Text | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: Bool | None = None
    max_output_tokens: Int | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: None = None
    background: Literal[False] | None = None
    # What these ask for is not there, and changes no answer.
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    store: Bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    stop: Stops | None = None
