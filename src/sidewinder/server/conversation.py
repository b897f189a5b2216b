"""From the messages and tools of a body to a `Conversation`."""

from typing import Any

from sidewinder.chat import Conversation, Tool, ToolChoice
from sidewinder.messages import call_arguments
from sidewinder.server.errors import ApiError
from sidewinder.server.schemas import (
    ConversationFields,
    FunctionTool,
    MadeCall,
    Message,
    NamedChoice,
    TokenizeRequest,
)


def conversation(body: ConversationFields) -> Conversation:
    """What a chat is about, checked.

    Raises:
        ApiError: for tools, choices or messages that contradict each other.
    """
    tools = _tools(body.tools or [])
    choice = _choice(body, tools)
    if not tools and body.parallel_tool_calls is not None:
        raise ApiError(400, "parallel_tool_calls needs tools", "parallel_tool_calls")
    options = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        options.setdefault("reasoning_effort", body.reasoning_effort)
    return Conversation(
        messages=_messages(body.messages),
        tools=() if choice.mode == "none" else tools,
        choice=choice,
        template_options=options,
    )


def shown(body: TokenizeRequest) -> Conversation:
    """What the prompt of such a conversation would be made of."""
    assert body.messages is not None
    tools = _tools(body.tools or [])
    return Conversation(
        _messages(body.messages), tools, template_options=body.chat_template_kwargs or {}
    )


def _tools(given: list[FunctionTool]) -> tuple[Tool, ...]:
    tools: dict[str, Tool] = {}
    for index, entry in enumerate(given):
        where, function = f"tools.{index}.function", entry.function
        if function.name in tools:
            raise ApiError(400, f"{where}.name: {function.name!r} is there twice", where)
        try:
            tools[function.name] = Tool(
                function.name,
                function.parameters or {},
                function.description,
                bool(function.strict),
            )
        except ValueError as error:
            raise ApiError(400, f"{where}: {error}", where) from error
    return tuple(tools.values())


def _choice(body: ConversationFields, tools: tuple[Tool, ...]) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    asked = body.tool_choice
    if isinstance(asked, NamedChoice):
        named = tuple(tool for tool in tools if tool.name == asked.function.name)
        if not named:
            message = f"tool_choice: {asked.function.name!r} is not among tools"
            raise ApiError(400, message, "tool_choice")
        return ToolChoice("required", named, parallel=False, is_named=True)
    if not tools:
        if asked in ("auto", "required"):
            raise ApiError(400, f"tool_choice {asked!r} needs tools", "tool_choice")
        return ToolChoice()
    return ToolChoice(asked or "auto", tools, parallel)


def _messages(given: list[Message]) -> list[dict[str, Any]]:
    """As chat templates read them: without what is not there, arguments as dictionaries."""
    messages = []
    for index, message in enumerate(given):
        _check(message, f"messages.{index}")
        entry: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        optional = {
            "name": message.name,
            "tool_call_id": message.tool_call_id,
            "reasoning_content": message.reasoning_content or message.reasoning,
        }
        entry |= {name: value for name, value in optional.items() if value is not None}
        if message.tool_calls:
            where = f"messages.{index}.tool_calls"
            entry["tool_calls"] = [
                _made_call(call, f"{where}.{number}")
                for number, call in enumerate(message.tool_calls)
            ]
        messages.append(entry)
    return messages


def _check(message: Message, where: str) -> None:
    if message.tool_calls and message.role != "assistant":
        where = f"{where}.tool_calls"
        raise ApiError(400, f"{where}: only an assistant's message has them", where)
    if message.content is None and not message.tool_calls:
        where = f"{where}.content"
        raise ApiError(400, f"{where} is missing; only tool_calls come without one", where)


def _made_call(call: MadeCall, where: str) -> dict[str, Any]:
    try:
        arguments = call_arguments(call.function.arguments)
    except ValueError as error:
        raise ApiError(400, f"{where}.{error}", where) from error
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": call.type, "function": function}
