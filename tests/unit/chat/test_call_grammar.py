"""Grammars hold answers to calls in every format, also where tags are special tokens."""

import contextlib

import pytest
from chat_cases import NOW, TOOLS, call_text

from sidewinder.chat import FORMATS, Tool, ToolChoice
from sidewinder.chat.grammar import call_grammar
from sidewinder.sampling import StructuredOutput
from sidewinder.sampling.grammar import GrammarCompiler
from sidewinder.testing import save_tokenizer
from sidewinder.tokenizer import Tokenizer

TAGS = ["</think>", *dict.fromkeys(tag for f in FORMATS.values() for tag in (f.begin, f.end))]


@pytest.fixture(scope="module", params=["plain tags", "special tags"])
def tokenizer(request, tmp_path_factory):
    special = TAGS if request.param == "special tags" else []
    return Tokenizer(str(save_tokenizer(tmp_path_factory.mktemp("tags"), special=special)))


def fits(tokenizer, name, choice, text, after=None):
    """Whether `text` may be an answer, and end there."""
    grammar = call_grammar(FORMATS[name], choice, tokenizer.special_tokens.keys())
    compiler = GrammarCompiler(tokenizer, len(tokenizer.inner), [0])
    constraint = compiler.constraint(StructuredOutput(grammar=grammar, after=after))
    for token in [*tokenizer.encode(text, special=False), 0]:
        if not constraint.allowed()[token // 8] >> (token % 8) & 1:
            return False
        constraint.take(token)
    return True


@pytest.mark.parametrize("name", FORMATS)
def test_required(tokenizer, name):
    choice, call = ToolChoice("required", TOOLS), call_text(name)
    assert fits(tokenizer, name, choice, call)
    assert not fits(tokenizer, name, choice, "")
    assert not fits(tokenizer, name, choice, f"Hm. {call}")
    assert not fits(tokenizer, name, choice, call.replace("3", '"x"'))
    assert not fits(tokenizer, name, choice, call.replace("get_weather", "get_money"))
    assert not fits(tokenizer, name, choice, call.replace("city", "town"))
    assert not fits(tokenizer, name, ToolChoice("required", (NOW,)), call)


@pytest.mark.parametrize("name", FORMATS)
def test_several_calls(tokenizer, name):
    call = call_text(name)
    format_ = FORMATS[name]
    if format_.between is not None:
        one = '{"name": "now", "arguments": {}}'
        two = call_text(name, format_.before + one + format_.between + one + format_.after)
    else:
        two = f"{call}\n{call}"
    for mode in ("required", "auto"):
        assert fits(tokenizer, name, ToolChoice(mode, TOOLS), two)
    assert not fits(tokenizer, name, ToolChoice("required", TOOLS, parallel=False), two)
    assert fits(tokenizer, name, ToolChoice("required", TOOLS, parallel=False), call)


@pytest.mark.parametrize("name", FORMATS)
def test_auto(tokenizer, name):
    choice, call = ToolChoice("auto", TOOLS), call_text(name)
    for text in ("", "Hm.\n", call, f"Hm.\n{call}", f"{call}\n", f"{call} So. {call}"):
        assert fits(tokenizer, name, choice, text), text
    assert not fits(tokenizer, name, choice, f"Hm. {call.replace('3', 'x')}")
    one = ToolChoice("auto", TOOLS, parallel=False)
    assert fits(tokenizer, name, one, f"Hm. {call} So.")
    if tokenizer.special_tokens.keys() >= {FORMATS[name].begin}:
        assert not fits(tokenizer, name, one, f"{call}\n{call}")
    assert not fits(tokenizer, name, choice, f"Hm. {FORMATS[name].begin} no")


@pytest.mark.parametrize("name", FORMATS)
def test_after_reasoning(tokenizer, name):
    choice, call = ToolChoice("required", TOOLS), call_text(name)
    assert fits(tokenizer, name, choice, f"So.\n</think>\n\n{call}", "</think>")
    assert fits(tokenizer, name, choice, f"</think>{call}", "</think>")
    assert not fits(tokenizer, name, choice, call, "</think>")


SEARCH = Tool(
    "search",
    {
        "type": "object",
        "$defs": {"small": {"type": "integer", "maximum": 5}},
        "properties": {
            "text": {"type": "string", "maxLength": 20},
            "kind": {"type": "string", "enum": ["a", "b c"]},
            "n": {"$ref": "#/$defs/small"},
        },
        "required": ["text", "n"],
    },
)


@pytest.mark.parametrize(
    ("arguments", "is_allowed"),
    [
        ({"text": "a\n<b> </parameter> é", "n": "5"}, True),
        ({"text": "", "kind": "b c", "n": "0"}, True),
        ({"text": "a", "kind": "b", "n": "0"}, False),
        ({"text": "a", "n": "6"}, False),
        ({"text": "a" * 20, "n": "5"}, True),
        ({"text": "a" * 21, "n": "5"}, False),
        ({"text": "a"}, False),
        ({"n": "5", "text": "a"}, False),
        ({"text": "a", "n": "5", "more": "b"}, False),
    ],
    ids=str,
)
def test_xml_arguments(tokenizer, arguments, is_allowed):
    """Order and presence as the schema has them; text may hold anything but its own end."""
    written = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    text = call_text("qwen3_coder", f"\n<function=search>\n{written}</function>\n")
    assert fits(tokenizer, "qwen3_coder", ToolChoice("required", (SEARCH,)), text) == is_allowed


def test_only_arguments_that_the_schema_names(tokenizer):
    call = call_text("hermes", '\n{"name": "f", "arguments": {"a": 1, "b": 2}}\n')
    named = {"properties": {"a": {"type": "integer"}}}
    for parameters, is_allowed in (
        (named, False),
        (named | {"additionalProperties": True}, True),
        ({}, True),
    ):
        choice = ToolChoice("required", (Tool("f", parameters),))
        assert fits(tokenizer, "hermes", choice, call) == is_allowed


def test_a_name_that_is_refused():
    for name in ("", "a b", "é", "a" * 129, "a\n"):
        with pytest.raises(ValueError, match="function name"):
            Tool(name)
    assert Tool("a-b.c_9").name == "a-b.c_9"


@pytest.mark.parametrize("value", ["x", 3, [{}]], ids=str)
def test_parameters_that_are_no_schema(value):
    with pytest.raises(ValueError, match="'properties' is not an object"):
        Tool("f", {"properties": value})
    with pytest.raises(ValueError, match="'required' is not a list of names"):
        Tool("f", {"properties": {"a": {}}, "required": value})


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder"])
def test_odd_parameters(tokenizer, name):
    """A form, or a ValueError, and never anything else."""
    for schema in (
        True, False, {}, {"enum": []}, {"enum": [""]}, {"enum": 3, "type": "string"},
        {"$ref": "#"}, {"$ref": "#/$defs/none"}, {"minLength": "x"}, {"maxLength": None},
        {"type": "king"}, {"enum": ["\ud800"]},
    ):  # fmt: skip
        for required in (None, [], ["a"]):
            tool = Tool("f", {"properties": {"a": schema}, "required": required})
            with contextlib.suppress(ValueError):
                fits(tokenizer, name, ToolChoice("required", (tool,)), "")


def test_texts_of_xml_arguments(tokenizer):
    def allows(schema, value):
        choice = ToolChoice("required", (Tool("f", {"properties": {'é😀"': schema}}),))
        body = f'\n<function=f>\n<parameter=é😀">\n{value}\n</parameter>\n</function>\n'
        return fits(tokenizer, "qwen3_coder", choice, call_text("qwen3_coder", body))

    assert allows({"const": "b 😀"}, "b 😀")
    assert not allows({"const": "b 😀"}, "c")
    assert allows({"enum": ['"\\\b', "c"]}, '"\\\b')
    assert allows({"type": "string", "enum": []}, "any")


def test_a_parameter_that_xml_cannot_name():
    odd = Tool("f", {"properties": {"a>b": {"type": "integer"}}})
    choice = ToolChoice("required", (odd,))
    with pytest.raises(ValueError, match="'a>b' cannot be written"):
        call_grammar(FORMATS["qwen3_coder"], choice, set())
    assert "a>b" in call_grammar(FORMATS["hermes"], choice, set())
