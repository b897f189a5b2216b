"""How one model's conversations are written: its chat template, reasoning and calls together."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from sidewinder.chat.answer import AnswerReader
from sidewinder.chat.formats import END_THINK, FORMATS, THINK, ToolFormat, reasons, tool_format_of
from sidewinder.chat.grammar import call_grammar
from sidewinder.chat.tools import Tool, ToolChoice
from sidewinder.sampling import SamplingParams, StructuredOutput
from sidewinder.tokenizer import Tokenizer


@dataclass(frozen=True)
class Conversation:
    """What the chat template makes a prompt of, and what its answer may do.

    Attributes:
        messages: as the template reads them: role, content, and the calls of functions, whose
            arguments are dictionaries.
        tools: what the model is shown.
        choice: which of them it may call.
        template_options: further variables of the template.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    template_options: Mapping[str, Any] = field(default_factory=dict)


class Dialect:
    """A model's way to reason and to call functions.

    Args:
        tokenizer: with the chat template.
        tool_parser: a format's name; "auto": the one that the template teaches; "none": none.
        reasoning_parser: "think": answers may reason between think tags; "auto": where the template
            speaks of them; "none": think tags are text.
    """

    def __init__(
        self, tokenizer: Tokenizer, tool_parser: str = "auto", reasoning_parser: str = "auto"
    ) -> None:
        self._tokenizer = tokenizer
        self._tool_parser = tool_parser
        self._reasoning_parser = reasoning_parser

    @cached_property
    def tools(self) -> ToolFormat | None:
        """How calls are written; None if that is not known."""
        if self._tool_parser != "auto":
            return FORMATS.get(self._tool_parser)
        return tool_format_of(self._tokenizer.chat_template(with_tools=True))

    @cached_property
    def reasons(self) -> bool:
        """Whether answers may reason between think tags."""
        if self._reasoning_parser != "auto":
            return self._reasoning_parser == "think"
        return reasons(self._tokenizer.chat_template())

    def prompt(self, conversation: Conversation) -> str:
        """The text that the answer continues.

        Raises:
            ValueError: if the template does not take these messages, tools or options.
        """
        if conversation.tools:
            self._check_tools()
        taken = sorted(_reserved() & conversation.template_options.keys())
        if taken:
            raise ValueError(
                f"chat_template_kwargs: {', '.join(taken)} is set by the server; leave it out"
            )
        tools = [tool.for_template() for tool in conversation.tools]
        return self._tokenizer.chat_text(
            conversation.messages, tools, conversation.template_options
        )

    def reader(self, conversation: Conversation, prompt: str) -> AnswerReader | None:
        """What reads the answer to `prompt`; None if it is text and nothing else."""
        choice = conversation.choice
        tools = self.tools if choice.mode != "none" else None
        reasoning = self._reasoning(prompt)
        if tools is None and reasoning == "none":
            return None
        schemas = {tool.name: tool.parameters for tool in choice.tools}
        return AnswerReader(tools, schemas, reasoning, None if choice.parallel else 1)

    def params(
        self, conversation: Conversation, prompt: str, params: SamplingParams
    ) -> SamplingParams:
        """`params` for the answer to `prompt`: with the tags in its text, and with the form that
        it must have after the model's reasoning.

        Raises:
            ValueError: if functions and another form are asked for.
        """
        form = params.structured_output
        choice, special = conversation.choice, self._tokenizer.special_tokens
        kept = [THINK, END_THINK] if self.reasons else []
        if choice.mode != "none" and self.tools is not None:
            kept += [self.tools.begin, self.tools.end]
            if form is not None:
                raise ValueError(
                    "tools and a form of the text (response_format, say) exclude each other; "
                    "give one, or tool_choice 'none'"
                )
            if choice.is_constrained:
                form = StructuredOutput(grammar=call_grammar(self.tools, choice, special.keys()))
        if form is not None and self._reasoning(prompt) == "open":
            form = replace(form, after=END_THINK)
        kept = [tag for tag in kept if tag in special]
        return replace(
            params,
            structured_output=form,
            kept_special_tokens=(*params.kept_special_tokens, *kept),
        )

    def _reasoning(self, prompt: str) -> str:
        """As `AnswerReader` has it: whether the answer to `prompt` begins inside of reasoning."""
        if not self.reasons or prompt.rstrip().endswith(END_THINK):
            return "none"
        return "open" if prompt.rstrip().endswith(THINK) else "maybe"

    def _check_tools(self) -> None:
        where = f"the chat template of {self._tokenizer.source!r}"
        if "tools" not in self._tokenizer.chat_template(with_tools=True):
            raise ValueError(f"{where} shows no tools to the model; leave tools out")
        if self.tools is None:
            raise ValueError(
                f"how the model of {self._tokenizer.source!r} writes calls is not known; start "
                f"the server with --tool-call-parser, one of {', '.join(FORMATS)}"
            )


@cache
def _reserved() -> frozenset[str]:
    """Names that would reach transformers instead of the template."""
    from transformers import PreTrainedTokenizerBase

    signature = inspect.signature(PreTrainedTokenizerBase.apply_chat_template)
    return frozenset(signature.parameters) - {"self", "kwargs", "documents"} | {"messages"}
