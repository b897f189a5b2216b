"""Structured output with drafts: the same texts, in fewer steps."""

import pytest
from llm_cases import make_model, sampled
from test_structured_output import FORMS, LARK, SCHEMA

from sidewinder import LLM, StructuredOutput
from sidewinder.sampling.grammar import GrammarCompiler
from sidewinder.tokenizer import Tokenizer

EOS = 2
RECORD = {
    "type": "object",
    "properties": {"customer_number": {"enum": ["first", "second"]}, "orders": {"type": "null"}},
    "required": ["customer_number", "orders"],
    "additionalProperties": False,
}
ALL = {name: form for name, (form, _) in FORMS.items()}
ALL |= {
    "json": StructuredOutput(json=SCHEMA),
    "record": StructuredOutput(json=RECORD),
    "any json": StructuredOutput(json_object=True),
    "lark": StructuredOutput(grammar=LARK),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    make_model("mamba", made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer(str(folder))


def constraint_of(form, tokenizer):
    tokenizer.load()
    return GrammarCompiler(tokenizer, 287, [EOS]).constraint(form)


@pytest.mark.parametrize("name", ALL)
def test_texts_are_the_same(name, folder):
    params = [
        sampled(structured_output=ALL[name], seed=seed, temperature=temperature, max_tokens=80)
        for seed, temperature in enumerate((0.0, 0.7, 1.5))
    ]
    params.append(sampled(structured_output=ALL[name], seed=5, logprobs=1))
    found = []
    for speculate in (0, 5):
        options = {"device": "cpu", "dtype": "float32", "threads": 1, "state_cache_bytes": 0}
        with LLM(folder, speculate=speculate, max_batch_size=4, **options) as llm:
            outputs = llm.generate(["the "] * 4, params)
            found.append([(each.token_ids, each.logprobs, each.finish_reason) for each in outputs])
            accepted = llm.counters.accepted_tokens
    assert found[0] == found[1]
    # Of the others nothing must come, and a random model does not repeat itself.
    assert accepted > 0 or name not in ("json", "record", "choice"), "nothing was drafted"


def test_what_must_come_is_drafted(tokenizer):
    constraint = constraint_of(ALL["record"], tokenizer)
    for token in tokenizer.encode('{"c', special=False):
        constraint.take(token)
    drafts, masks = constraint.draft((), 30)
    assert "ustomer_number".startswith(tokenizer.decode(drafts))
    assert len(drafts) == len(masks) > 3
    assert constraint.draft((), 2) == (drafts[:2], masks[:2])


def test_masks_of_drafts_are_those_of_the_text(tokenizer):
    text = tokenizer.encode('{"customer_number":"second","orders":null}', special=False)
    follower, checked = (constraint_of(ALL["record"], tokenizer) for _ in range(2))
    for place, token in enumerate(text):
        drafts, masks = follower.draft(text[place:], 40)
        assert drafts == tuple(text[place : place + len(drafts)])
        ahead = checked._matcher.deep_copy()
        for draft, mask in zip(drafts, masks, strict=True):
            ahead.consume_token(draft)
            assert mask == ahead.compute_bitmask()[: len(mask)]
        assert follower.allowed() == checked.allowed(), "a draft moves nothing"
        follower.take(token)
        checked.take(token)
    assert follower.draft([EOS], 5)[0] in ((), (EOS,))


def test_drafts_that_do_not_fit_are_left_out(tokenizer):
    constraint = constraint_of(FORMS["regex"][0], tokenizer)
    letters, digits = (tokenizer.encode(text, special=False) for text in ("ab", "12"))
    drafts, masks = constraint.draft([*letters, *digits], 9)
    assert drafts == tuple(letters)
    assert len(masks) == len(letters)
    assert constraint.draft(digits, 9) == ((), ())
    assert constraint.draft([10_000], 9) == ((), ())
