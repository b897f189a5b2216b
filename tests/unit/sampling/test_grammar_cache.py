"""Compiled grammars are shared, and take no more memory than was set aside."""

import pytest

from sidewinder import StructuredOutput
from sidewinder.sampling.grammar import KEPT_BYTES, OPTIONAL, GrammarCompiler, most_bytes
from sidewinder.sampling.grammar_cache import CompiledGrammar, GrammarCache
from sidewinder.sampling.structured import MAX_TEXT
from sidewinder.testing import save_tokenizer
from sidewinder.tokenizer import Tokenizer


def form(number):
    return StructuredOutput(regex=f"a{number}")


@pytest.fixture
def cache():
    return GrammarCache(100)


def test_the_last_ones_are_kept_as_far_as_the_bytes_reach(cache):
    for number in range(4):
        cache.add(form(number), CompiledGrammar(None, 40))
    assert [cache.find(form(number)) is not None for number in range(4)] == [0, 0, 1, 1]
    assert cache.n_bytes == 80


def test_what_was_asked_for_again_stays(cache):
    first = CompiledGrammar(None, 40)
    cache.add(form(0), first)
    del first
    cache.add(form(1), CompiledGrammar(None, 40))
    assert cache.find(form(0)) is not None
    cache.add(form(2), CompiledGrammar(None, 40))
    assert cache.find(form(0)) is not None
    assert cache.find(form(1)) is None


def test_what_is_in_use_counts_and_is_found(cache):
    in_use = CompiledGrammar(None, 70)
    cache.add(form(0), in_use)
    cache.add(form(1), CompiledGrammar(None, 50))
    assert cache.n_bytes == 70
    assert cache.find(form(0)) is in_use
    assert not cache.make_room(40)
    assert cache.make_room(30)
    assert cache.find(form(0)) is in_use
    assert not cache.make_room(31)
    del in_use
    assert cache.make_room(100)
    assert cache.n_bytes == 0
    assert cache.find(form(0)) is None


def test_a_text_holds_its_grammar_until_it_ends(tmp_path):
    tokenizer = Tokenizer(str(save_tokenizer(tmp_path)))
    compiler = GrammarCompiler(tokenizer, len(tokenizer.inner), [0])
    constraint = compiler.constraint(form(0))
    assert compiler.cache.n_bytes == most_bytes(form(0))
    compiler.cache.most_bytes = 0
    assert not compiler.cache.make_room(0)
    assert compiler.cache.n_bytes == most_bytes(form(0))
    del constraint
    assert compiler.cache.n_bytes == 0


def test_what_grammars_take_by_their_text():
    """Bytes that some took (docs/log.md)."""
    for given, taken in [
        ({"regex": "a?" * 4500}, 42_700_000),
        ({"regex": "a?" * 2000}, 10_300_000),
        ({"regex": "a?" * 8000}, 133_100_000),
        ({"grammar": "start: " + "a? " * 5000}, 4_100_000),
        ({"choice": [f"text number {n} of many" for n in range(3000)]}, 2_900_000),
        ({"json": {"const": "ab" * 450_000}}, 24_100_000),
    ]:
        assert taken <= most_bytes(StructuredOutput(**given))
    assert most_bytes(StructuredOutput(json_object=True)) < 2_000_000


def test_the_largest_form_fits():
    """It would wait for room for ever."""
    for sign in OPTIONAL:
        text = sign * (MAX_TEXT // len(sign))
        assert most_bytes(StructuredOutput(regex=text, after="</think>")) <= KEPT_BYTES


def test_one_of_thousands_of_texts(tmp_path):
    """As alternatives of a rule they compiled, and no text could go on behind its first token."""
    tokenizer = Tokenizer(str(save_tokenizer(tmp_path)))
    compiler = GrammarCompiler(tokenizer, len(tokenizer.inner), [0])
    texts = [f"the value number {i}" for i in range(3_000)]
    constraint = compiler.constraint(StructuredOutput(choice=texts))
    for token in tokenizer.encode("the value number 29", special=False):
        assert constraint.allowed()[token // 8] >> token % 8 & 1
        constraint.take(token)
    digit = tokenizer.encode("7", special=False)[-1]
    allowed = constraint.allowed()
    assert allowed[0] & 1, "it may end here"
    assert allowed[digit // 8] >> digit % 8 & 1, "or go on"
