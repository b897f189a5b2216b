"""Bodies of requests. Unknown fields are refused by name; ranges are `SamplingParams`' to check."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    model_validator,
)

from sidewinder.chat.tools import MAX_TOOLS
from sidewinder.messages import joined_parts
from sidewinder.sampling.params import MAX_BIASES

Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Bool = Annotated[bool, Strict()]
TokenIds = list[Int]


def _valid_unicode(text: str) -> str:
    """JSON can spell half of a character (a lone surrogate); no tokenizer knows what to do."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid Unicode ({error.reason})") from error
    return text


Text = Annotated[str, AfterValidator(_valid_unicode)]

MAX_STOPS = 16
"""Most stop strings of one request; every new piece of text is searched for each of them."""

MAX_STOP_IDS = 64
"""Most stop ids of one request: `min_tokens` masks them, and some token must be left to draw."""


MAX_FORM = 16_384
"""Most characters of a regular expression or grammar: a few hundred kilobytes of them can take
minutes to compile, and all forms behind it wait. (JSON schemas have no such worst case.)"""

Form = Annotated[str, Field(max_length=MAX_FORM), AfterValidator(_valid_unicode)]


class Body(BaseModel):
    """JSON objects whose unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """Fields that are not known and null ask for nothing; many clients send `tools: null`."""
        if not isinstance(values, dict):
            return values
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None or name in known}


class TextPart(Body):
    """One part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


class StreamOptions(Body):
    """What a stream tells besides text."""

    include_usage: Bool = False
    continuous_usage_stats: Bool = False


class JsonSchema(Body):
    """A named JSON schema; `strict` is always kept, `name` and `description` mean nothing here."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Bool | None = None


class ResponseFormat(Body):
    """How the text must be formed, in OpenAI's words."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """How the text must be formed, in vLLM's words: exactly one of these."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    json_object: Bool | None = None
    regex: Form | None = None
    choice: list[Text] | None = None
    grammar: Form | None = None


def _as_prompts(value: Any) -> Any:
    """One prompt, text or token ids, or a list of them: as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("give a text, a list of texts, token ids, or lists of token ids")
    if all(isinstance(item, str | list) for item in value):
        return value
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return [value]
    raise ValueError("is a mixture; give a text, a list of texts, token ids, or lists of them")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Prompts = Annotated[
    list[Text | TokenIds],
    BeforeValidator(
        _as_prompts, json_schema_input_type=str | list[str] | TokenIds | list[TokenIds]
    ),
]
Stops = Annotated[
    list[Text],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(max_length=MAX_STOPS),
]
Content = Annotated[
    Text, BeforeValidator(joined_parts, json_schema_input_type=str | list[TextPart])
]


class Prediction(Body):
    """What the text may largely say: OpenAI's predicted outputs."""

    type: Literal["content"]
    content: Content


class Sampling(Body):
    """Fields that completions and chats share. The names are OpenAI's, and vLLM's for the rest."""

    model: str | None = None
    n: Annotated[Int, Field(ge=1, le=128)] | None = None
    temperature: Float | None = None
    top_p: Float | None = None
    top_k: Int | None = None
    min_p: Float | None = None
    seed: Int | None = None
    stop: Stops | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_IDS)] | None = None
    max_tokens: Int | None = None
    min_tokens: Int | None = None
    ignore_eos: Bool | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    repetition_penalty: Annotated[Float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[str, Float], Field(max_length=MAX_BIASES)] | None = None
    prompt_logprobs: Int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: Form | None = None
    guided_choice: list[Text] | None = None
    guided_grammar: Form | None = None
    include_stop_str_in_output: Bool | None = None
    skip_special_tokens: Bool | None = None
    prediction: Prediction | None = None
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    priority: Annotated[Int, Field(ge=-(2**31), lt=2**31)] | None = None
    user: str | None = None


class CompletionRequest(Sampling):
    """Body of POST /v1/completions."""

    prompt: Prompts
    echo: Bool | None = None
    logprobs: Int | None = None
    best_of: Int | None = None
    suffix: str | None = None


class CalledFunction(Body):
    """A call that the assistant made: the function and JSON text of its arguments. What the
    `openai` package parses from it may be there, too."""

    name: Text
    arguments: Text
    parsed_arguments: Any = None


class MadeCall(Body):
    """One of the calls that an assistant's message made; streamed ones have a number."""

    id: str
    index: Int | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None


class Function(Body):
    """A function that may be called."""

    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Bool | None = None


class FunctionTool(Body):
    """An entry of `tools`."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """Names a function."""

    name: Text


class NamedChoice(Body):
    """A `tool_choice` that names the function to call."""

    type: Literal["function"]
    function: NamedFunction


class ConversationFields(Body):
    """What the chat template makes a prompt of."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: Bool | None = None
    reasoning_effort: Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatRequest(Sampling, ConversationFields):
    """Body of POST /v1/chat/completions."""

    max_completion_tokens: Int | None = None
    logprobs: Bool | None = None
    top_logprobs: Int | None = None


class Extras(Body):
    """Chats' names for what requests of other forms may ask for, too."""

    temperature: Float | None = None
    top_p: Float | None = None
    top_k: Int | None = None
    min_p: Float | None = None
    seed: Int | None = None
    min_tokens: Int | None = None
    ignore_eos: Bool | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    repetition_penalty: Float | None = None
    logit_bias: dict[str, Float] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: Text | None = None
    priority: Int | None = None


class TokenizeRequest(Body):
    """Body of POST /tokenize: a prompt, or messages for the chat template."""

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: TokenIds
