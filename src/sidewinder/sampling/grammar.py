"""From a `StructuredOutput` to the tokens that may come next, by llguidance.

The caller's process alone follows the grammar. What is allowed travels to the ranks in each step's
plan, one bit per token of the vocabulary, so that all of them draw from the same tokens.
"""

import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import numpy as np

from sidewinder.sampling.grammar_cache import CompiledGrammar, GrammarCache
from sidewinder.sampling.structured import StructuredOutput
from sidewinder.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

BLANKS = r"[\x20\x0A\x0D\x09]{1,20}"
"""Between parts of JSON, at most so many: a weak model must not fill its text with them."""

MAX_LEXER_STATES = 20_000
"""Of one grammar; a state takes 1 to 2 kB."""

LEXER_FUEL = 60_000
"""Of llguidance's, for all expressions of one grammar, which it holds as long as it is kept: 4,500
times `a?` takes 0.1 s and 40 MB, and both grow with the square. Schemas may list 3,000 texts."""

KEPT_BYTES = 1 << 30
"""Of all compiled grammars together, as far as they are known (`most_bytes`)."""

OPTIONAL = ("?", "*", "|", "[", "{0")
"""What may make parts of an expression optional: so many of them in a row are as many expressions,
each as long as what is left of the row."""

COMPILER_STACK = 1 << 29
"""Bytes; only what is used is taken from memory. llguidance follows rules and references by
recursion, some kilobytes for each, and a stack that is full ends the process. Half of this held all
that was tried with texts of `MAX_TEXT`."""


class GrammarConstraint:
    """Follows one text through a grammar; when it can only end, only ending ids are allowed.

    Args:
        grammar: what it follows.
        vocab_size: ids of the model.
        ending: bits of the ids that end a text.
    """

    def __init__(self, grammar: CompiledGrammar, vocab_size: int, ending: bytes) -> None:
        self._grammar = grammar  # whose bytes count while this lives
        self._matcher = grammar.matcher.deep_copy()
        self._vocab_size = vocab_size
        self._ending = ending

    def allowed(self) -> bytes:
        bits = self._bits()
        if bits is None:
            reason = self._matcher.get_error().partition("\n")[0] or "no token fits"
            logger.warning("a structured text ends early: %s", reason)
            return self._ending
        return bits

    def draft(
        self, suggested: Sequence[int], most: int
    ) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        tokens = (self._matcher.compute_ff_tokens() or suggested)[:most]
        masks: list[bytes] = []
        for token in tokens:
            if token >= self._vocab_size or not self._matcher.try_consume_tokens([token]):
                break
            bits = self._bits()
            if bits is None:
                self._matcher.rollback(1)
                break
            masks.append(bits)
        self._matcher.rollback(len(masks))
        return tuple(tokens[: len(masks)]), tuple(masks)

    def _bits(self) -> bytes | None:
        """What may come next; None if nothing may."""
        bits = _first_bits(self._matcher.compute_bitmask(), self._vocab_size)
        return None if self._matcher.is_error() or not any(bits) else bits

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)


class GrammarCompiler:
    """Compiles structured outputs for one tokenizer, and keeps what it compiled.

    Args:
        tokenizer: whose tokens the texts consist of.
        vocab_size: ids of the model, which may have more than the tokenizer.
        eos_token_ids: ids that end a text.

    Attributes:
        cache: of grammars.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self.cache = GrammarCache(KEPT_BYTES)

    def constraint(self, spec: StructuredOutput) -> GrammarConstraint:
        """A text in the form of `spec`, at its beginning; it is compiled unless it is kept.

        Raises:
            ValueError: as `compile`.
        """
        return self.follow(self.compile(spec))

    def follow(self, grammar: CompiledGrammar) -> GrammarConstraint:
        """A text in the form of `grammar`, at its beginning."""
        return GrammarConstraint(grammar, self._vocab_size, self._ending)

    def compile(self, spec: StructuredOutput) -> CompiledGrammar:
        """The grammar of `spec`, compiled unless it is kept: what takes long, up to some seconds.

        Raises:
            ValueError: if it does not compile, the model has no end-of-text id, or its tokenizer
                is not one of the tokenizers library.
        """
        found = self.cache.find(spec)
        if found is None:
            found = self._compile_deep(spec)
            self.cache.add(spec, found)
        return found

    def _compile_deep(self, spec: StructuredOutput) -> CompiledGrammar:
        """`_compile` in a thread with a large stack."""
        result: Future[CompiledGrammar] = Future()

        def run() -> None:
            try:
                result.set_result(self._compile(spec))
            except BaseException as error:
                result.set_exception(error)

        before = threading.stack_size(COMPILER_STACK)
        try:
            thread = threading.Thread(target=run, name="grammar")
            thread.start()
        finally:
            threading.stack_size(before)
        thread.join()
        return result.result()

    def _compile(self, spec: StructuredOutput) -> CompiledGrammar:
        import llguidance

        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=LEXER_FUEL, max_lexer_states=MAX_LEXER_STATES, verbose_errors=False
        )
        matcher = llguidance.LLMatcher(
            self._vocabulary, self._grammar(spec), log_level=0, limits=limits
        )
        # What is wrong with some grammars shows only when they are first used.
        bits = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            raise ValueError(f"structured output: {_one_line(matcher.get_error())}")
        if not any(_first_bits(bits, self._vocab_size)):
            raise ValueError("structured output: no text has this form; loosen it")
        return CompiledGrammar(matcher, most_bytes(spec))

    def _grammar(self, spec: StructuredOutput) -> str:
        """`spec` as llguidance reads it, behind free text where it asks for some."""
        form = _form(spec) | {"name": "form"}
        if spec.after is None:
            return json.dumps({"grammars": [form]})
        # A tag that is a special token has no quotes in a grammar.
        is_special = spec.after in self._tokenizer.special_tokens
        tag = spec.after if is_special else json.dumps(spec.after)
        opening = f"opening{'' if is_special else '[lazy]'}: /(?s:.*)/ {tag}"
        head = f"%llguidance {{}}\nstart: opening LINES @form\n{opening}\nLINES: /\\n{{0,2}}/\n"
        return json.dumps({"grammars": [{"name": "head", "lark_grammar": head}, form]})

    @cached_property
    def _ending(self) -> bytes:
        mask = np.zeros(self._vocab_size, dtype=bool)
        mask[self._eos] = True
        return np.packbits(mask, bitorder="little").tobytes()

    @cached_property
    def _vocabulary(self) -> Any:
        from llguidance.hf import from_tokenizer

        if not self._eos:
            raise ValueError(
                "structured output needs an end-of-text id, and this model has none; set "
                "eos_token_id in generation_config.json"
            )
        inner = self._tokenizer.inner
        if not inner.is_fast:
            raise ValueError(
                f"structured output needs a tokenizer.json, and {self._tokenizer.source!r} has none"
            )
        n_vocab = max(self._vocab_size, len(inner))
        return from_tokenizer(inner, n_vocab=n_vocab, eos_token=self._eos)


def most_bytes(form: StructuredOutput) -> int:
    """What the grammar of `form` takes at most, by its text: llguidance does not tell. Twice to
    fifty times what the grammars of docs/log.md took, with the states that texts add."""
    texts = [form.json, form.regex, form.grammar, form.after, *form.choice]
    given = [text for text in texts if text is not None]
    n_optional = sum(text.count(sign) for text in given for sign in OPTIONAL)
    n_characters = sum(map(len, given))
    return min(3 * n_optional**2, 320 << 20) + 300 * n_characters + (1 << 20)


def _first_bits(bits: bytes, n: int) -> bytes:
    """The first `n` bits of at least so many: tokenizers may have tokens that the model lacks."""
    whole = bits[: -(-n // 8)]
    return whole[:-1] + bytes([whole[-1] & 0xFF >> -n % 8])


def _form(spec: StructuredOutput) -> dict[str, Any]:
    """The form itself, as one of llguidance's grammars."""
    from llguidance import LLMatcher

    if spec.json_object or spec.json is not None:
        schema = spec.json or '{"type": "object"}'
        return _only(
            LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": BLANKS})
        )
    if spec.choice:
        texts = " | ".join(json.dumps(text) for text in spec.choice)
        # One terminal: rows of the parser hold 2,000 at most.
        return {"lark_grammar": f"start: TEXT\nTEXT: {texts}"}
    if spec.regex is not None:
        return _only(LLMatcher.grammar_from_regex(spec.regex))
    assert spec.grammar is not None
    return {"lark_grammar": _lark(spec.grammar)}


def _only(grammars: str) -> dict[str, Any]:
    (grammar,) = json.loads(grammars)["grammars"]
    return dict(grammar)


def _lark(grammar: str) -> str:
    """A grammar in Lark's syntax; `::=` tells that it is GBNF."""
    from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

    if "::=" not in grammar or is_lark_syntax(grammar):
        return grammar
    try:
        return gbnf_to_lark(grammar)
    # The converter raises plain exceptions.
    except Exception as error:
        raise ValueError(f"structured output: {_one_line(str(error))}") from error


def _one_line(message: str) -> str:
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())[:500]
