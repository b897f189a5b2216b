"""`text_offset` of completions: where in the text each token begins."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.sampling import SamplingParams
from sidewinder.server.offsets import Offsets, prompt_starts
from sidewinder.testing import save_tokenizer
from sidewinder.tokenizer import REPLACEMENT, Tokenizer

SPECIAL = 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(str(save_tokenizer(tmp_path_factory.mktemp("words"), bos=True)))


def offsets(tokenizer, prompt, tokens, opening=""):
    request = SimpleNamespace(prompt=tuple(prompt), params=SamplingParams())
    echoed = prompt_starts(tokenizer, prompt, opening) if opening else ()
    found = Offsets(tokenizer, SimpleNamespace(request=request), echoed, opening)
    return [found.next(token) for token in tokens]


def check(tokenizer, text, tokens, starts):
    """Every token that is whole characters stands where it is said to."""
    assert starts == sorted(starts)
    for token, start in zip(tokens, starts, strict=True):
        name = tokenizer.decode([token])
        if REPLACEMENT not in name:
            assert text[start : start + len(name)] == name


@given(st.text(min_size=1), st.text())
def test_of_texts(tokenizer, prompt, answer):
    before = tokenizer.encode(prompt)
    tokens = [*tokenizer.encode(answer, special=False), SPECIAL]
    check(tokenizer, answer, tokens, offsets(tokenizer, before, tokens))
    starts = offsets(tokenizer, before, before + tokens, opening=prompt)
    assert before[0] == SPECIAL
    assert starts[:2] == [0, 0], "BOS is not in the text"
    check(tokenizer, prompt + answer, before + tokens, starts)


@given(st.lists(st.integers(1, 286)))
def test_of_bytes_that_are_no_characters(tokenizer, tokens):
    check(tokenizer, tokenizer.decode(tokens), tokens, offsets(tokenizer, [5], tokens))


def test_tokens_of_one_character(tokenizer):
    tokens = tokenizer.encode("a\u4e2db", special=False)
    assert len(tokens) == 5
    assert offsets(tokenizer, [5], tokens) == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("echo", [False, True])
def test_of_replies(client, echo):
    body = {"prompt": "\u4e2d the self", "max_tokens": 24, "seed": 4, "echo": echo, "logprobs": 0}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    told = choice["logprobs"]
    assert told["text_offset"][0] == 0
    for name, start in zip(told["tokens"], told["text_offset"], strict=True):
        if REPLACEMENT not in name and not name.startswith("<|"):
            assert choice["text"][start : start + len(name)] == name
