"""Answers taken apart: reasoning, text, calls; whole and in pieces."""

import json
from itertools import pairwise

import pytest
from chat_cases import TOOLS, call_text
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.chat import FORMATS, AnswerReader, Part

SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}


def as_json(text):
    """The value, or `text` itself where it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read(text, tools=None, reasoning="none", pieces=None, most_calls=None):
    """(reasoning, content, calls) of an answer, given in `pieces`."""
    reader = AnswerReader(tools and FORMATS[tools], SCHEMAS, reasoning, most_calls)
    given_pieces = pieces or [text]
    parts = [reader.push(piece, False) for piece in given_pieces[:-1]]
    parts.append(reader.push(given_pieces[-1], True))
    calls = Part(pieces=[piece for part in parts for piece in part.pieces]).calls
    assert reader.n_calls == len(calls)
    calls = [(call.name, as_json(call.arguments)) for call in calls]
    return "".join(p.reasoning for p in parts), "".join(p.content for p in parts), calls


BERN = ("get_weather", {"city": "Bern", "days": 3})


@pytest.mark.parametrize("name", FORMATS)
def test_a_call(name):
    assert read(call_text(name), name) == ("", "", [BERN])


@pytest.mark.parametrize("name", FORMATS)
def test_text_around_calls(name):
    text = f"Let me see.\n\n{call_text(name)}\n{call_text(name)} So.\n"
    assert read(text, name) == ("", "Let me see.So.\n", [BERN, BERN])


@pytest.mark.parametrize("name", FORMATS)
def test_parts_have_the_order_in_which_they_were_written(name):
    reader = AnswerReader(FORMATS[name], SCHEMAS, "open")
    text = f"Hm.</think>See: {call_text(name)} And {call_text(name)}{call_text(name)} so."
    kinds = [
        part.reasoning or part.content or [piece.name for piece in part.pieces if piece.name]
        for part in reader.parts(text, True) if part != Part()
    ]  # fmt: skip
    call = ["get_weather"]
    assert kinds == ["Hm.", "See:", call, "And", call, call, "so."]


@pytest.mark.parametrize("name", ["falcon", "jamba", "nemotron"])
def test_several_calls_in_a_list(name):
    body = '[{"name": "now", "arguments": {}},\n {"name": "now", "arguments": {"a": [1, null]}}]'
    assert read(call_text(name, body), name)[2] == [("now", {}), ("now", {"a": [1, None]})]


@pytest.mark.parametrize("name", FORMATS)
def test_without_the_closing_tag(name):
    """A model may end its answer right behind the call."""
    text = call_text(name).removesuffix(FORMATS[name].end)
    assert read(f"Hm. {text}", name) == ("", "Hm.", [BERN])


@pytest.mark.parametrize("name", FORMATS)
def test_the_closing_tag_inside_an_argument(name):
    format_ = FORMATS[name]
    body = call_text(name).removeprefix(format_.begin).removesuffix(format_.end)
    odd = body.replace("Bern", f"B{format_.end}n")
    assert read(call_text(name, odd), name)[2] == [
        ("get_weather", {"city": f"B{format_.end}n", "days": 3})
    ]


@pytest.mark.parametrize(
    "body",
    ["", "{", "3", '"now"', "[]", '{"name": 3}', '{"name": "now", "arguments": [1]}',
     '{"name": "now" "arguments"', "[" * 100_000, '{"name": ' * 1000],
    ids=lambda body: body[:40],
)  # fmt: skip
@pytest.mark.parametrize("name", ["hermes", "jamba"])
def test_what_is_no_call_stays_text(name, body):
    text = f"a {FORMATS[name].begin}{body}{FORMATS[name].end} b"
    assert read(text, name) == ("", text, [])
    again = read(f"{text} {call_text(name)}", name)
    assert again == ("", text, [BERN])


def test_arguments_that_are_no_json_are_reported():
    """Their beginning may be with the client already."""
    for text in ('{"a": NaN}', '{"a": 1, }', '{"a" 1}'):
        body = f'{{"name": "now", "arguments": {text}}}'
        assert read(call_text("hermes", body), "hermes")[2][0][0] == "now"
    cut = '<tool_call>{"name": "now", "arguments": {"a": "b'
    assert read(cut, "hermes") == ("", "", [("now", '{"a": "b')])
    unclosed = call_text("hermes", '{"name": "now", "arguments": {"a": 1')
    assert read(f"{unclosed} So.", "hermes") == ("", "So.", [("now", '{"a": 1')])
    junk = call_text("hermes", '[{"name": "now", "arguments": {}}, 3, {"b": 1}, x]')
    assert read(junk, "hermes")[2] == [("now", {})]


def test_arguments_in_other_ways():
    assert read(call_text("hermes", '{"name": "now", "parameters": {"a": 1}}'), "hermes")[2] == [
        ("now", {"a": 1})
    ]
    assert read(call_text("hermes", '{"name": "now"}'), "hermes")[2] == [("now", {})]
    for body in (
        '{"arguments": {"a": {"b": "}"}}, "name": "now"}',
        '{"id": 3, "name": "now", "arguments": {"a": {"b": "}"}}}',
        '{"name": "now", "arguments": "{\\"a\\": {\\"b\\": \\"}\\"}}"}',
        ' [ { "name" :\n"now" , "arguments" :{"a": {"b": "}"}} } ] ',
    ):
        assert read(call_text("hermes", body), "hermes")[2] == [("now", {"a": {"b": "}"}})], body


def test_xml_values_follow_the_schema():
    def value(text, schema):
        body = f"<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>"
        reader = AnswerReader(FORMATS["qwen3_coder"], {"f": {"properties": {"x": schema}}})
        (call,) = reader.push(call_text("qwen3_coder", body), True).calls
        return json.loads(call.arguments)["x"]

    assert value("3", {"type": "string"}) == "3"
    assert value("3", {"type": "integer"}) == 3
    assert value("3", {}) == "3"
    assert value("3", {"type": ["string", "null"]}) == "3"
    assert value("null", {"type": ["string", "null"]}) is None
    assert value("null", {"type": "string"}) == "null"
    assert value("[1, 2]", {"type": "array"}) == [1, 2]
    assert value("true", {"anyOf": [{"type": "boolean"}, {"type": "null"}]}) is True
    assert value("C", {"enum": ["C", "F"]}) == "C"
    assert value("2", {"enum": [1, 2]}) == 2
    assert value("many", {"type": "integer"}) == "many"
    odd = 'a\n\n"b" \\ é </function> <parameter=y> c\n'
    assert value(odd, {"type": "string"}) == odd
    assert value("NaN", {"type": "number"}) == "NaN"


def test_xml_that_is_no_call():
    for body in ["now()", "", "<function>", "<function=>\n</function>", "<functions=now>"]:
        text = f"a\n{call_text('qwen3_coder', body)}"
        assert read(text, "qwen3_coder") == ("", text, [])


def test_xml_that_is_incomplete():
    start = "<tool_call>\n<function=now>\n"
    assert read(start, "qwen3_coder")[2] == [("now", "{")]
    assert read(f"{start}</tool_call>", "qwen3_coder")[2] == [("now", {})]
    cut = f"{start}<parameter=a>\n1\n</parameter>\n<parameter=b>\nlong te"
    assert read(cut, "qwen3_coder")[2] == [("now", '{"a": "1", "b": "long te')]
    junk = f"{start}hm <parameter=a>1</parameter> hm </function></tool_call>"
    assert read(junk, "qwen3_coder")[2] == [("now", {"a": "1"})]


def test_arguments_come_while_they_are_written():
    """A long text may take minutes, and connections end that are silent for long."""
    for name, start in (
        ("hermes", '<tool_call>\n{"name": "now", "arguments": {"a": "'),
        ("jamba", '<tool_calls>[\n    {"name": "now", "arguments": {"a": "'),
        ("qwen3_coder", "<tool_call>\n<function=now>\n<parameter=a>\n"),
    ):
        reader = AnswerReader(FORMATS[name])
        assert [piece.name for piece in reader.push(start, False).pieces if piece.name] == ["now"]
        assert "".join(p.arguments for p in reader.push("Once", False).pieces) == "Once"
        assert "".join(p.arguments for p in reader.push(" upon", False).pieces) == " upon"


def test_reasoning_that_the_prompt_opened():
    text = "\nWhy?\nSo.\n</think>\n\nYes.\n"
    assert read(text, reasoning="open") == ("Why?\nSo.", "Yes.\n", [])
    assert read("Why?", reasoning="open") == ("Why?", "", [])
    assert read("</think>Yes.", reasoning="open") == ("", "Yes.", [])


def test_reasoning_that_the_answer_may_open():
    assert read("\n<think>\nWhy?</think>Yes.", reasoning="maybe") == ("Why?", "Yes.", [])
    assert read("Yes. <think> No.</think>", reasoning="maybe") == (
        "",
        "Yes. <think> No.</think>",
        [],
    )
    assert read("<thi", reasoning="maybe") == ("", "<thi", [])
    assert read("", reasoning="maybe") == ("", "", [])


def test_tags_that_are_text():
    text = f"<think>a</think> {call_text('hermes')}"
    assert read(text) == ("", text, [])


def test_calls_after_reasoning():
    text = f"Why? <tool_call> no.</think>\n{call_text('hermes')}"
    assert read(text, "hermes", "open") == ("Why? <tool_call> no.", "", [BERN])


def test_most_calls():
    text = call_text("hermes") * 3
    assert read(text, "hermes", most_calls=1) == ("", "", [BERN])


SNIPPETS = st.sampled_from(
    ["a", " ", "\n", "<", "<think>", "</think>", "</tool", "<tool_call>", "</tool_call>", "{", "é",
     call_text("hermes"), call_text("qwen3_coder"), call_text("jamba"), "<tool_calls>",
     '<tool_call>{"name": "f", "arguments": {"a": "\\\\ \\" }", "b": 1}}</tool_call>']
)  # fmt: skip


@given(
    st.lists(SNIPPETS, max_size=8).map("".join),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(["none", "maybe", "open"]),
    st.data(),
)
def test_pieces_equal_the_whole(text, name, reasoning, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    edges = [0, *cuts, len(text)]
    pieces = [text[low:high] for low, high in pairwise(edges)]
    assert read(text, name, reasoning, pieces) == read(text, name, reasoning)
    assert read(text, name, reasoning, list(text) or [""]) == read(text, name, reasoning)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("name", FORMATS)
def test_a_call_in_pieces(name, size):
    text = f"Hm. {call_text(name)}\n{call_text(name)} So."
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert read(text, name, pieces=pieces) == ("", "Hm.So.", [BERN, BERN])


def test_a_name_with_an_escape_that_json_lacks():
    body = r'{"name": "a\q\"", "arguments": {}}'
    assert read(call_text("hermes", body), "hermes")[2] == [(r"a\q\"", {})]


def test_an_escape_that_is_cut():
    text = '<tool_call>{"name": "f", "arguments": {"a": "\\" }", "b": 1}}</tool_call> So.'
    whole = ("", "So.", [("f", {"a": '" }', "b": 1})])
    assert read(text, "hermes") == whole
    assert read(text, "hermes", pieces=list(text)) == whole


def test_text_does_not_wait_without_need():
    reader = AnswerReader(FORMATS["hermes"], SCHEMAS)
    assert reader.push("Hello", False).content == "Hello"
    assert reader.push(" <b", False).content == " <b"
    assert reader.push(" <to", False).content == ""
    assert reader.push("e>", False).content == " <toe>"


def test_ids_differ():
    reader = AnswerReader(FORMATS["hermes"], SCHEMAS)
    first, second = reader.push(call_text("hermes") * 2, True).calls
    assert first == second
    assert first.id != second.id
    assert first.id.startswith("call_")


def test_numbers_stay_as_they_are_written():
    """Python would make infinity of some, which is no JSON, and round others."""
    schemas = {"f": {"properties": {"x": {"type": "number"}}}}
    for number in ("1e999", "0.1000000000000000000001"):
        body = f"<function=f><parameter=x>\n{number}\n</parameter></function>"
        reader = AnswerReader(FORMATS["qwen3_coder"], schemas)
        (call,) = reader.push(call_text("qwen3_coder", body), True).calls
        assert call.arguments == f'{{"x": {number}}}'


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("hermes", '<tool_call>{"name": "', '", "arguments": {}}</tool_call>'),
        ("qwen3_coder", "<tool_call><function=", "></function></tool_call>"),
    ],
)
def test_the_longest_name(name, start, end):
    """Names that do not end are no names: each new piece would be matched with all before it."""
    assert read(f"{start}{'a' * 256}{end}", name)[2] == [("a" * 256, {})]
    reader = AnswerReader(FORMATS[name])
    parts = [reader.push(piece, False) for piece in (start, "a" * 290, "a" * 20)]
    assert not any(part.pieces for part in parts)
    if name == "qwen3_coder":
        assert "".join(part.content for part in parts) == f"{start}{'a' * 310}"


def test_functions_and_parameters_that_nobody_offered():
    body = "<function=g>\n<parameter=x>\n1\n</parameter>\n</function>"
    for properties in (None, {}, {"x": True}, {"x": None}):
        reader = AnswerReader(FORMATS["qwen3_coder"], {"g": {"properties": properties}})
        (call,) = reader.push(call_text("qwen3_coder", body), True).calls
        assert json.loads(call.arguments) == {"x": "1"}
