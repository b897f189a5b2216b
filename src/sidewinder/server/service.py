"""What the endpoints do, apart from HTTP: from a checked request to a reply, whole or in events."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.types import Receive

from sidewinder.chat import Conversation, Dialect
from sidewinder.engine.async_engine import AsyncEngine, EngineClosed, RequestStream
from sidewinder.engine.inputs import Prompt, check_tokens
from sidewinder.engine.intake import Call, Intake
from sidewinder.llm import LLM
from sidewinder.sampling import SamplingParams
from sidewinder.server.answers import Answer
from sidewinder.server.choice import Choice
from sidewinder.server.config import ServerConfig
from sidewinder.server.errors import ApiError, api_error
from sidewinder.server.forms import FormQueue
from sidewinder.server.logprobs import Writer
from sidewinder.server.messages.reply import MessageReply
from sidewinder.server.messages.schemas import MessagesRequest
from sidewinder.server.offsets import prompt_starts
from sidewinder.server.params import Generation
from sidewinder.server.replies import CompletionReply, Reply
from sidewinder.server.responses.reply import ResponseReply
from sidewinder.server.responses.schemas import ResponseRequest
from sidewinder.server.stream import until_gone

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass
class Running:
    """A reply under way and where its increments come from."""

    reply: Reply
    stream: RequestStream


class Service:
    """The model as the endpoints see it.

    Args:
        llm: loaded; its engine is stepped by `engine` alone.
        engine: runs the requests.
        config: of the server.
        name: what clients call the model.
    """

    def __init__(self, llm: LLM, engine: AsyncEngine, config: ServerConfig, name: str) -> None:
        self.name = name
        self.config = config
        self.engine = engine
        self.started_s = int(time.time())
        self.draining = False
        self.max_model_len = llm.config.max_model_len
        self._vocab_size = llm.model_config.vocab_size
        self._tokenizer = llm.tokenizer
        self._dialect = Dialect(llm.tokenizer, config.tool_call_parser, config.reasoning_parser)
        self._intake: Intake = llm.intake
        self._writer = Writer(llm.tokenizer)
        # Long prompts take a while: one thread prepares them in their order, off the event loop.
        self._thread = ThreadPoolExecutor(1, "intake")
        self._forms = FormQueue(self._intake, engine.check_open)

    @property
    def default_max_tokens(self) -> int | None:
        """Of a chat; None continues to `max_model_len`."""
        return None if self.max_model_len is not None else self.config.default_max_tokens

    def close(self) -> None:
        """End its threads. Calling twice is fine."""
        self._thread.shutdown()
        self._forms.close()

    def check_model(self, name: str | None) -> None:
        """Raise ApiError (404) if `name` is another model."""
        if name is not None and name != self.name:
            message = f"the model {name!r} does not exist; this server has {self.name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def completion_reply(
        self, request_id: str, asked: Generation, is_chat: bool, choices: Sequence[Choice]
    ) -> CompletionReply:
        """The reply of a completion or chat."""
        return CompletionReply(request_id, self.name, is_chat, choices, asked, self._writer)

    def response_reply(
        self, request_id: str, body: ResponseRequest, choices: Sequence[Choice]
    ) -> ResponseReply:
        """The reply of a response."""
        return ResponseReply(request_id, self.name, body, self._count, choices)

    def message_reply(
        self, request_id: str, body: MessagesRequest, choices: Sequence[Choice]
    ) -> MessageReply:
        """The reply of a message."""
        return MessageReply(request_id, self.name, body, choices)

    async def start(
        self, asked: Generation, reply_of: Callable[[list[Choice]], Reply], receive: Receive
    ) -> Running:
        """Put the requests of one reply in the queue.

        Args:
            asked: the request.
            reply_of: makes the reply of these choices.
            receive: tells that the client went, while the form of the texts is compiled.

        Raises:
            ApiError: if they cannot run.
            ClientGone: if the client did not wait for that.
            Overloaded: if the queue is full.
            EngineClosed: if the engine failed.
        """
        arrived_s = time.perf_counter()
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5)
        most = min(self.config.max_choices, self.engine.max_open)
        if asked.n_choices > most:
            raise ApiError(
                400,
                f"{len(asked.prompts)} prompts with n={asked.n} ask for {asked.n_choices} texts; "
                f"at most {most} may be asked for at once",
                "n",
            )
        reservation = self.engine.reserve(asked.n_choices)
        try:
            choices = await self._off_loop(self._prepare, asked)
            # The engine alone holds what they follow: a reader may take long after the last token.
            calls = await self._constrained([choice.call for choice in choices], receive)
            stream = self.engine.submit(calls, reservation, arrived_s)
        finally:
            reservation.release()
        return Running(reply_of(choices), stream)

    async def whole(self, running: Running) -> dict[str, Any]:
        """The finished reply. What is left of it is dropped if the caller is cancelled."""
        choices = _by_request(running.reply)
        with closing(running.stream) as stream:
            async for increments in stream:
                for increment in increments:
                    choices[increment.request_id].take(increment)
        return running.reply.whole()

    async def events(self, running: Running) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events."""
        reply = running.reply
        choices = _by_request(reply)
        for each in reply.opening():
            yield each
        try:
            async for increments in running.stream:
                for increment in increments:
                    choices[increment.request_id].take(increment)
                for request_id in dict.fromkeys(each.request_id for each in increments):
                    for each in reply.news(choices[request_id]):
                        yield each
        except EngineClosed as error:
            for each in reply.failure(api_error(error)):
                yield each
            return
        for each in reply.ending():
            yield each

    async def tokenize(self, prompt: Prompt | Conversation) -> list[int]:
        """Token ids of a text, or of a conversation."""
        return await self._off_loop(self._token_ids, prompt)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""

        def decode() -> str:
            if not tokens:
                return ""
            return self._tokenizer.decode(check_tokens(tokens, self._vocab_size), False)

        return await self._off_loop(decode)

    async def _off_loop(self, function: Callable[..., Result], *args: object) -> Result:
        """Run in the intake's thread; what is wrong with the input is the client's to know."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, function, *args)
        except ValueError as error:
            raise ApiError(400, str(error)) from error

    async def _constrained(self, calls: Sequence[Call], receive: Receive) -> Sequence[Call]:
        """`calls` held to their form, which is the same for all of a reply."""
        request = calls[0].request
        form = request.params.structured_output
        if form is None or not request.generate:
            return calls
        try:
            grammar = self._forms.find(form)
            if grammar is None:
                grammar = await until_gone(receive, self._forms.compile(form))
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        return [self._intake.constrained(call, grammar) for call in calls]

    def _prepare(self, asked: Generation) -> list[Choice]:
        choices: list[Choice] = []
        for prompt in asked.prompts:
            if isinstance(prompt, Conversation):
                return self._answers(prompt, asked)
            given = prompt if isinstance(prompt, str) else self._token_ids(prompt)
            opening, starts = self._text(given) if asked.echo else "", None
            for number in range(asked.n):
                call = self._call(given, asked, number)
                if starts is None:
                    starts = self._starts(call, opening)
                choices.append(
                    Choice(len(choices), call, opening, asked.echo, opening_starts=starts)
                )
        return choices

    def _answers(self, conversation: Conversation, asked: Generation) -> list[Choice]:
        text = self._dialect.prompt(conversation)
        asked = replace(asked, params=self._dialect.params(conversation, text, asked.params))
        tokens = self._tokenizer.encode(text, special=False)
        if asked.fits:
            asked = replace(asked, params=self._fitting(asked.params, len(tokens)))
        return [
            Choice(
                number,
                self._call(tokens, asked, number),
                answer=Answer(
                    self._dialect.reader(conversation, text), conversation.choice.is_named
                ),
            )
            for number in range(asked.n)
        ]

    def _fitting(self, params: SamplingParams, n_prompt: int) -> SamplingParams:
        """`params`, with at most as many tokens as `max_model_len` has room for."""
        if self.max_model_len is None or params.max_tokens is None:
            return params
        room = max(1, self.max_model_len - n_prompt)
        return replace(params, max_tokens=min(params.max_tokens, room))

    def _call(self, prompt: Prompt, asked: Generation, number: int) -> Call:
        params = asked.params_of(number)
        if asked.generate:
            salt, priority = asked.cache_salt, asked.priority
            return self._intake.generation(prompt, params, salt, priority=priority, compiles=False)
        call = self._intake.reading(prompt, cache_salt=asked.cache_salt)
        return replace(call, request=replace(call.request, params=params))

    def _token_ids(self, prompt: Prompt | Conversation) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        if isinstance(prompt, Conversation):
            return self._tokenizer.encode(self._dialect.prompt(prompt), special=False)
        return list(prompt)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, special=False)) if text else 0

    def _starts(self, call: Call, opening: str) -> list[int]:
        """Where the tokens of an echoed prompt begin; of many this takes long: not with replies."""
        request = call.request
        if not opening or request.params.prompt_logprobs is None:
            return []
        return prompt_starts(self._tokenizer, request.prompt, opening)

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        return self._tokenizer.decode(check_tokens(prompt, self._vocab_size), False)


def _by_request(reply: Reply) -> dict[int, Choice]:
    return {choice.call.request.id: choice for choice in reply.choices}
