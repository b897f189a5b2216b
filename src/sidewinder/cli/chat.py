"""`sidewinder chat`: a conversation in the terminal."""

import argparse
import sys
from typing import Any

from sidewinder.chat import AnswerReader, Conversation, Dialect, Part
from sidewinder.cli.generate import summary
from sidewinder.cli.options import (
    add_engine_options,
    add_sampling_options,
    engine_options,
    sampling_params,
    tokenizer_of,
    utf8,
)
from sidewinder.llm import LLM
from sidewinder.sampling import SamplingParams
from sidewinder.tokenizer import Tokenizer

DESCRIPTION = """\
Talk with MODEL through its tokenizer's chat template. An empty line or Ctrl-D ends the
conversation; Ctrl-C stops an answer; /reset forgets what was said. What a model thinks before it
answers, between <think> and </think>, is dim, and left out where the output is no terminal."""

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
"""Terminal codes."""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("chat", help="talk with a model", description=DESCRIPTION)
    add_engine_options(parser)
    parser.add_argument("--system", type=utf8, metavar="TEXT", help="system message")
    add_sampling_options(parser, max_tokens=512)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Talk until the user ends; returns the exit status."""
    params = sampling_params(args)
    opening = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(opening)
    options = engine_options(args)
    # A template that is missing, or takes no system message, is better known before a long start.
    tokenizer = Tokenizer(tokenizer_of(args.model, options))
    tokenizer.chat([*opening, {"role": "user", "content": "Hello"}])
    with LLM(args.model, progress=True, **options) as llm:
        dialect = Dialect(llm.tokenizer)
        while (said := _read()) is not None:
            if said == "/reset":
                messages = list(opening)
                continue
            messages.append({"role": "user", "content": said})
            answer = _answer(llm, dialect, messages, params)
            messages.append({"role": "assistant", "content": answer})
    return 0


def _read() -> str | None:
    """The user's next line, or None at the end."""
    prompt = "> " if sys.stdin.isatty() else ""
    try:
        return input(prompt).strip() or None
    except EOFError:
        return None


def _answer(
    llm: LLM, dialect: Dialect, messages: list[dict[str, str]], params: SamplingParams
) -> str:
    """Stream one answer; Ctrl-C stops it and keeps what was said so far."""
    conversation = Conversation(messages)
    prompt = dialect.prompt(conversation)
    reader = dialect.reader(conversation, prompt) or AnswerReader()
    text = ""
    stream = llm.stream(
        llm.tokenizer.encode(prompt, special=False), dialect.params(conversation, prompt, params)
    )
    try:
        for piece in stream:
            part = reader.push(piece.text, piece.output is not None)
            text += part.content
            print(_shown(part), end="", flush=True)
            if piece.output is not None:
                print(f"\n{summary(piece.output)}", file=sys.stderr)
    except KeyboardInterrupt:
        stream.close()
        print("\n[stopped]", file=sys.stderr)
    return text


def _shown(part: Part) -> str:
    reasoning = f"{DIM}{part.reasoning}{PLAIN}" if part.reasoning and _is_terminal() else ""
    return reasoning + part.content


def _is_terminal() -> bool:
    return sys.stdout.isatty()
