"""Which format a template teaches, what goes into it, and what is refused."""

import pytest
from chat_cases import NOW, TEMPLATE, THINKING, TOOLS, WEATHER

from sidewinder.chat import Conversation, Dialect, Tool, ToolChoice
from sidewinder.sampling import SamplingParams, StructuredOutput
from sidewinder.testing import save_tokenizer
from sidewinder.tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "Rain?"}]
AUTO = Conversation(ASKED, TOOLS, ToolChoice("auto", TOOLS))
PLAIN = Conversation(ASKED)


@pytest.fixture
def dialect(tmp_path):
    def make(template=TEMPLATE, special=(), **parsers):
        folder = save_tokenizer(tmp_path, template=template, special=special)
        return Dialect(Tokenizer(str(folder)), **parsers)

    return make


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }}<tool_call>\n{...}</tool_call>", "hermes"),
        ("{{ tools }}<tool_call>\n<function=example>\n<parameter=a>", "qwen3_coder"),
        ("{{ tools }}<tool_call>\n[\n{...}]</tool_call>", "falcon"),
        ("{{ tools + '<tool_call>\\n[\\n{...}]</tool_call>' }}", "falcon"),
        ("{{ tools }}<tool_calls>[", "jamba"),
        ("{{ tools }}<TOOLCALL>[", "nemotron"),
        ("{{ tools }}call()", None),
    ],
)
def test_the_template_says_how_calls_are_written(dialect, template, name):
    found = dialect(template).tools
    assert (found and found.name) == name
    assert dialect(template, tool_parser="jamba").tools.name == "jamba"
    assert dialect(template, tool_parser="none").tools is None


def test_tools_and_calls_reach_the_template(dialect):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Bern"}}}
    messages = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text = dialect().prompt(Conversation(messages, TOOLS))
    assert text.startswith("tools: get_weather now\n")
    assert "assistant:  get_weather(Bern)\n" in text
    assert "tools" not in dialect().prompt(PLAIN)


def test_tools_in_openais_form():
    assert WEATHER.for_template() == {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of some days.",
            "parameters": WEATHER.parameters,
        },
    }


def test_a_tool_without_parameters():
    assert Tool("f").for_template() == {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
    }


def test_tools_that_cannot_be_used(dialect):
    with pytest.raises(ValueError, match="shows no tools"):
        dialect("{% for m in messages %}{{ m.content }}{% endfor %}").prompt(AUTO)
    for parsers in ({}, {"tool_parser": "none"}):
        with pytest.raises(ValueError, match="--tool-call-parser"):
            dialect("{{ tools }}", **parsers).prompt(AUTO)


@pytest.mark.parametrize("name", ["tools", "messages", "tokenize", "chat_template", "conversation"])
def test_options_that_are_not_the_templates(dialect, name):
    with pytest.raises(ValueError, match=f"{name} is set by the server"):
        dialect().prompt(Conversation(ASKED, template_options={name: 1}))


def test_a_template_that_fails(dialect):
    with pytest.raises(ValueError, match="rejects these messages"):
        dialect("{{ messages[0].content + 1 }}").prompt(PLAIN)
    with pytest.raises(ValueError, match="rejects these messages"):
        dialect("{{ raise_exception('no') }}").prompt(PLAIN)


def test_reasoning(dialect):
    def part(text, thinks, **parsers):
        own = dialect(THINKING, **parsers)
        options = {"enable_thinking": True} if thinks else {}
        conversation = Conversation(ASKED, template_options=options)
        reader = own.reader(conversation, own.prompt(conversation))
        if reader is None:
            return None
        read = reader.push(text, True)
        return read.reasoning, read.content

    assert part("Hm.</think>Yes.", thinks=True) == ("Hm.", "Yes.")
    assert part("Hm.</think>Yes.", thinks=False) is None
    assert part("Hm.</think>Yes.", thinks=True, reasoning_parser="none") is None
    own = dialect(TEMPLATE, reasoning_parser="think")
    read = own.reader(PLAIN, own.prompt(PLAIN)).push("<think>Hm.</think>Yes.", True)
    assert (read.reasoning, read.content) == ("Hm.", "Yes.")


def test_what_reads_an_answer_with_tools(dialect):
    own = dialect()
    assert own.reader(PLAIN, own.prompt(PLAIN)) is None
    hidden = Conversation(ASKED, (), ToolChoice("none"))
    assert own.reader(hidden, own.prompt(hidden)) is None
    assert own.reader(AUTO, own.prompt(AUTO)) is not None


def test_one_call_or_several(dialect):
    own, text = dialect(), '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    for parallel, n in ((True, 2), (False, 1)):
        one = Conversation(ASKED, TOOLS, ToolChoice("auto", TOOLS, parallel))
        assert len(own.reader(one, own.prompt(one)).push(text * 2, True).calls) == n


def test_developers_are_system_to_templates_that_do_not_know_them(dialect):
    asked = Conversation([{"role": "developer", "content": "Be."}, *ASKED])
    assert dialect().prompt(asked).startswith("system: Be.\n")
    knows = TEMPLATE + "{# developer #}"
    assert dialect(knows).prompt(asked).startswith("developer: Be.\n")


def params_of(dialect, conversation, params=None):
    return dialect.params(conversation, dialect.prompt(conversation), params or SamplingParams())


def test_forms(dialect):
    own = dialect()
    assert params_of(own, AUTO).structured_output is None
    required = Conversation(ASKED, TOOLS, ToolChoice("required", (NOW,)))
    grammar = params_of(own, required).structured_output.grammar
    assert '\\"now\\"' in grammar
    assert "get_weather" not in grammar
    strict = ToolChoice("auto", (WEATHER.__class__("f", {}, strict=True),))
    assert "TEXT" in params_of(own, Conversation(ASKED, TOOLS, strict)).structured_output.grammar
    form = StructuredOutput(json_object=True)
    assert params_of(own, PLAIN, SamplingParams(structured_output=form)).structured_output == form
    with pytest.raises(ValueError, match="exclude each other"):
        params_of(own, AUTO, SamplingParams(structured_output=form))


def test_a_form_begins_after_the_reasoning(dialect):
    own = dialect(THINKING)
    thinking = Conversation(ASKED, template_options={"enable_thinking": True})
    asked = SamplingParams(structured_output=StructuredOutput(json_object=True))
    assert params_of(own, thinking, asked).structured_output.after == "</think>"
    assert params_of(own, PLAIN, asked).structured_output.after is None
    assert params_of(own, thinking).structured_output is None


def test_tags_that_are_special_tokens_stay_in_the_text(dialect):
    special = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    own = dialect(THINKING, special)
    assert set(params_of(own, AUTO).kept_special_tokens) == set(special)
    assert set(params_of(own, PLAIN).kept_special_tokens) == set(special[:2])
    assert params_of(dialect(THINKING), AUTO).kept_special_tokens == ()
