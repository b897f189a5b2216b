"""Structured output: the text has its form, whatever the model, the batch and the seed."""

import json
import re
import time

import pytest
from llm_cases import make_model, sampled

from sidewinder import LLM, StructuredOutput
from sidewinder.sampling.grammar import GrammarCompiler
from sidewinder.testing import save_tiny, save_tokenizer
from sidewinder.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["kind", "legs", "tags"],
    "additionalProperties": False,
}
LARK = 'start: expr\nexpr: NUMBER | "(" expr "+" expr ")"\nNUMBER: /[0-9]{1,2}/'
GBNF = 'root ::= word ("," word)? "."\nword ::= [a-c]{2,3}'
FORMS = {
    "regex": (StructuredOutput(regex="[a-z]{3}-[0-9]{2}"), "[a-z]{3}-[0-9]{2}"),
    "choice": (StructuredOutput(choice=["yes", 'no "quoted" é\n']), '(yes|no "quoted" é\n)'),
    "gbnf": (StructuredOutput(grammar=GBNF), "[a-c]{2,3}(,[a-c]{2,3})?[.]"),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model("mamba", folder)
    with LLM(folder, device="cpu", dtype="float32", threads=1, max_batch_size=4) as llm:
        yield llm


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(("form", "pattern"), FORMS.values(), ids=FORMS)
def test_texts_have_their_form(llm, form, pattern, temperature):
    params = [
        sampled(structured_output=form, seed=seed, temperature=temperature, max_tokens=60)
        for seed in range(4)
    ]
    outputs = llm.generate(["the "] * 4, params)
    assert all(output.finish_reason == "stop" for output in outputs)
    for output in outputs:
        assert re.fullmatch(pattern, output.text), output.text


@pytest.mark.parametrize("seed", range(3))
def test_json_fits_its_schema(llm, seed):
    params = sampled(structured_output=StructuredOutput(json=SCHEMA), seed=seed, max_tokens=400)
    (output,) = llm.generate("answer: ", params)
    assert output.finish_reason == "stop"
    value = json.loads(output.text)
    assert set(value) == {"kind", "legs", "tags"}
    assert value["kind"] in ("cat", "dog")
    assert value["legs"] in range(9)


def test_json_object_begins_like_one_and_never_breaks(llm):
    params = sampled(structured_output=StructuredOutput(json_object=True), max_tokens=30)
    (output,) = llm.generate("x", params)
    assert output.text.lstrip().startswith("{")
    assert not re.search(r"\s{21}", output.text)


def test_a_lark_grammar_can_recurse(llm):
    form = StructuredOutput(grammar=LARK)
    params = [sampled(structured_output=form, seed=seed, max_tokens=400) for seed in range(4)]
    for output in llm.generate(["1"] * 4, params):
        assert output.text.count("(") >= output.text.count(")")
        if output.finish_reason == "stop":
            assert isinstance(eval(output.text), int)  # only digits, brackets and + can be in it


def test_the_batch_does_not_matter(llm):
    mixed = [
        sampled(structured_output=FORMS["regex"][0]),
        sampled(),
        sampled(structured_output=FORMS["gbnf"][0], logit_bias={70: 5.0}),
        sampled(temperature=0),
    ]
    together = llm.generate(["def "] * 4, mixed)
    alone = [llm.generate("def ", params)[0] for params in mixed]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]


def test_a_length_ends_it_unfinished(llm):
    (output,) = llm.generate("a", sampled(structured_output=FORMS["regex"][0], max_tokens=2))
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 2


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (StructuredOutput(regex="(a"), "unclosed group"),
        (StructuredOutput(regex="a(?=b)"), "look-around"),
        (StructuredOutput(json={"type": "nonsense"}), "nonsense"),
        (StructuredOutput(json={"type": "string", "unevaluatedItems": 1}), "unevaluatedItems"),
        (StructuredOutput(json={"$ref": "#/nowhere"}), "nowhere"),
        (StructuredOutput(json={"enum": []}), "enum|Unsatisfiable"),
        (StructuredOutput(grammar="start: other"), "other"),
        (StructuredOutput(grammar="root ::= other"), "other"),
        (StructuredOutput(grammar="nonsense"), "structured output"),
        (StructuredOutput(regex="[^\\x00-\\U0010ffff]"), "structured output"),
    ],
    ids=lambda value: str(value)[17:50],
)
def test_forms_that_do_not_compile_are_refused(llm, form, message):
    with pytest.raises(ValueError, match=message):
        llm.generate("a", sampled(structured_output=form))
    assert not llm.engine.has_work


@pytest.mark.parametrize(("vocab_size", "expected"), [(257, None), (259, [258, 0])])
def test_tokens_that_the_model_lacks_are_not_allowed(tmp_path, vocab_size, expected):
    """Its tokenizer has 287, and "the self" must be two of those from 258 on."""
    save_tokenizer(save_tiny("mamba", tmp_path, vocab_size=vocab_size, eos_token_id=0))
    params = sampled(structured_output=StructuredOutput(choice=["the self"]))
    with LLM(tmp_path, device="cpu", dtype="float32", threads=1) as llm:
        if expected is None:
            with pytest.raises(ValueError, match="no text has this form"):
                llm.generate([[5]], params)
        else:
            assert llm.generate([[5]], params)[0].token_ids == expected


def test_huge_forms_end_soon(llm):
    """What a stranger can send must not hold up everybody: refused, or compiled within seconds."""
    nested = {"type": "object"}
    for _ in range(60):
        nested = {"anyOf": [nested, {"type": "array", "items": nested}]}
    started = time.perf_counter()
    for form in (
        StructuredOutput(regex="((a{1,900}){1,900}){1,900}"),
        StructuredOutput(regex="(.*a.{40}b.*)+"),
        StructuredOutput(json={"type": "string", "maxLength": 10**9}),
        StructuredOutput(choice=[f"option {number}" for number in range(5000)]),
    ):
        try:
            llm.generate("a", sampled(structured_output=form, max_tokens=3))
        except ValueError as error:
            assert "structured output" in str(error)  # noqa: PT017
    assert time.perf_counter() - started < 20


def test_a_model_without_an_ending_is_refused(llm):
    compiler = GrammarCompiler(llm.tokenizer, 287, ())
    with pytest.raises(ValueError, match="end-of-text id"):
        compiler.constraint(FORMS["regex"][0])


def test_compiled_forms_are_kept(llm, monkeypatch):
    compiler = GrammarCompiler(Tokenizer(llm.tokenizer.source), 287, (0,))
    first = compiler.constraint(FORMS["regex"][0])
    monkeypatch.setattr(compiler, "_compile", None)
    second = compiler.constraint(StructuredOutput(regex="[a-z]{3}-[0-9]{2}"))
    token = first._matcher.compute_ff_tokens()
    assert token == []
    for word in "abc":
        first.take(llm.encode(word)[0])
    assert first.allowed() != second.allowed()


def test_ranks_draw_from_the_same_tokens(llm):
    params = [
        sampled(structured_output=form, seed=seed) for seed, (form, _) in enumerate(FORMS.values())
    ]
    params.append(sampled(logit_bias={5: 20.0, 286: 20.0}))
    folder = llm.config.model
    with LLM(folder, tp=2, device="cpu", dtype="float32", threads=1) as two:
        for expected, output in zip(
            llm.generate(["the "] * 4, params), two.generate(["the "] * 4, params), strict=True
        ):
            assert output.token_ids == expected.token_ids


CHAIN = 10_000
"""Rules or references: far more than a usual stack holds, where the process would end."""


@pytest.mark.parametrize("kind", ["rules", "references", "items"])
def test_long_chains_do_not_end_the_process(tmp_path, kind):
    if kind == "rules":
        rules = "\n".join(f'r{i}: r{i + 1} "b"' for i in range(CHAIN))
        form = StructuredOutput(grammar=f'start: r0\n{rules}\nr{CHAIN}: "a"')
    else:
        refs = [{"$ref": f"#/$defs/a{i + 1}"} for i in range(CHAIN)]
        schemas = refs if kind == "references" else [{"type": "array"} | {"items": r} for r in refs]
        defs = {f"a{i}": schema for i, schema in enumerate(schemas)} | {f"a{CHAIN}": {}}
        form = StructuredOutput(json={"$ref": "#/$defs/a0", "$defs": defs})
    tokenizer = Tokenizer(str(save_tokenizer(tmp_path)))
    constraint = GrammarCompiler(tokenizer, len(tokenizer.inner), [0]).constraint(form)
    assert any(constraint.allowed())
    if kind == "rules":
        constraint.take(*tokenizer.encode("a", special=False))
        assert any(constraint.allowed())


def test_an_expression_that_would_take_gigabytes(tmp_path):
    tokenizer = Tokenizer(str(save_tokenizer(tmp_path)))
    compiler = GrammarCompiler(tokenizer, len(tokenizer.inner), [0])
    with pytest.raises(ValueError, match="too big"):
        compiler.constraint(StructuredOutput(regex="a?" * 50_000))
    texts = [f"the value number {i}" for i in range(5_000)]
    compiler.constraint(StructuredOutput(choice=texts))
    compiler.constraint(StructuredOutput(json={"enum": texts[:2_000]}))
