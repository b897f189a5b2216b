"""Tokenizer, incremental detokenisation, and stop strings."""

import json
import shutil
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage

from sidewinder.detokenizer import Detokenizer, StopStrings
from sidewinder.messages import template_messages
from sidewinder.testing import save_tokenizer
from sidewinder.tokenizer import REPLACEMENT, Tokenizer

TEXTS = ["the self.return", "naïve café – 日本語 🙂🙂 end", "  two\n\n\tspaces", "�real�", "é"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer(str(folder))


def pieces_of(tokenizer, tokens, context=(), skip=True):
    detokenizer = Detokenizer(tokenizer, context, skip)
    pieces = [detokenizer.push(token) for token in tokens]
    return [*pieces, detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_are_inverse(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_that_are_no_unicode_are_refused(tokenizer):
    """As a command line in another encoding gives them."""
    text = b"a caf\xe9".decode(errors="surrogateescape")
    with pytest.raises(ValueError, match=r"not valid Unicode: '\\udce9' at character 5"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenizer.chat([{"role": "user", "content": text}])


def test_bos_as_the_tokenizer_is_configured(tokenizer, tmp_path):
    with_bos = Tokenizer(str(save_tokenizer(tmp_path, bos=True)))
    assert with_bos.encode("the") == [0, *tokenizer.encode("the")]
    assert with_bos.decode(with_bos.encode("the")) == "the"
    assert with_bos.decode(with_bos.encode("the"), skip_special_tokens=False) == "<|end|>the"


@pytest.mark.parametrize("config", [None, {"model_type": "mamba"}], ids=["nothing", "a-model"])
def test_a_missing_tokenizer_raises_when_it_is_needed(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match=r"no usable tokenizer in .*tokenizer=<folder"):
        tokenizer.encode("text")


def test_the_hub_is_asked_once_for_a_tokenizer_that_is_not_there(monkeypatch):
    """transformers would try again for a minute."""
    asked = []

    def refuse(name, **_):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr("sidewinder.checkpoint.hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"no usable tokenizer in 'nobody' .*no network.*an owner"):
        Tokenizer("nobody").load()
    assert asked == ["nobody"]
    with pytest.raises(ValueError, match=r"'./nothing' is not a folder"):
        Tokenizer("./nothing").load()


def test_a_broken_tokenizer_raises_when_it_is_needed(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "tokenizer.json").write_text('{"version": "1.0", "model":')
    with pytest.raises(ValueError, match="no usable tokenizer"):
        Tokenizer(str(broken)).load()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("context", ["", "before ", "é"], ids=["alone", "after-text", "after-é"])
def test_pieces_join_to_the_full_decode(tokenizer, text, context):
    tokens, before = tokenizer.encode(text), tokenizer.encode(context) if context else []
    assert "".join(pieces_of(tokenizer, tokens, before)) == text


def test_no_piece_holds_part_of_a_character(tokenizer):
    text = "a🙂é日b"
    tokens = tokenizer.encode(text)
    assert len(tokens) > len(text), "characters of several tokens, or the test shows nothing"
    pieces = pieces_of(tokenizer, tokens)
    assert [piece for piece in pieces if piece] == list(text)


@given(tokens=st.lists(st.integers(0, 286), max_size=40), n_context=st.integers(0, 10))
def test_any_tokens_join_to_the_full_decode(tokenizer, tokens, n_context):
    context = tokenizer.encode("some words before")[:n_context]
    joined = "".join(pieces_of(tokenizer, tokens, context))
    assert joined == tokenizer.decode(tokens)


def test_a_prompt_that_ends_inside_a_character_does_not_matter(tokenizer):
    tokens = tokenizer.encode("🙂x")
    for cut in range(1, 4):
        joined = "".join(pieces_of(tokenizer, tokens[cut:], context=tokens[:cut]))
        assert joined == tokenizer.decode(tokens[cut:])


def test_special_tokens_are_skipped_or_shown(tokenizer):
    tokens = [*tokenizer.encode("the"), 0, *tokenizer.encode("self"), 0]
    assert "".join(pieces_of(tokenizer, tokens)) == "theself"
    assert "".join(pieces_of(tokenizer, tokens, skip=False)) == "the<|end|>self<|end|>"


def test_an_unfinished_character_comes_out_at_the_end(tokenizer):
    tokens = tokenizer.encode("ok🙂")
    pieces = pieces_of(tokenizer, tokens[:-1])
    assert "".join(pieces[:-1]) == "ok"
    assert set(pieces[-1]) == {REPLACEMENT}
    assert "".join(pieces) == tokenizer.decode(tokens[:-1])


BYTES = "é日🙂"


@given(st.data())
def test_parts_of_characters_without_end_join_to_the_full_decode(tokenizer, data):
    """Also of whole ones far behind them."""
    parts = [token for token in tokenizer.encode(BYTES) if tokenizer.decode([token]) == REPLACEMENT]
    assert len(set(parts)) > 5
    stuck = data.draw(st.lists(st.sampled_from(parts), min_size=20, max_size=80))
    tokens = [*tokenizer.encode("é"), *stuck, *tokenizer.encode(BYTES + " end"), *stuck]
    assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens)


class Empty:
    """A toy tokenizer: 0 has no text, as ids beyond a vocabulary; others are a letter each."""

    special_ids = frozenset[int]()

    def decode(self, ids, skip_special_tokens=True):  # noqa: ARG002
        self.longest = max(len(ids), getattr(self, "longest", 0))
        return "".join(chr(96 + i) for i in ids if i)


def test_parts_of_characters_stream_and_cost_no_more_each_time(tokenizer):
    token = tokenizer.encode("🙂")[1]
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("the self"))
    pieces = [detokenizer.push(token) for _ in range(500)]
    assert len("".join(pieces)) > 490
    assert "".join([*pieces, detokenizer.finish()]) == REPLACEMENT * 500
    assert len(detokenizer._window) < 40


def test_tokens_without_text_cost_no_more_each_time():
    toy = Empty()
    assert "".join(pieces_of(toy, [1, *[0] * 500, 2])) == "ab"
    assert toy.longest < 40


class SpacedWords:
    """A toy tokenizer that writes a space between words, as sentencepiece does."""

    special_ids = frozenset[int]()

    def decode(self, ids, skip_special_tokens=True):  # noqa: ARG002
        return " ".join(f"w{i}" for i in ids)


def test_the_prompt_decides_how_the_first_token_is_written():
    assert "".join(pieces_of(SpacedWords(), [1, 2], context=[7])) == " w1 w2"
    assert "".join(pieces_of(SpacedWords(), [1, 2])) == "w1 w2"


# --- chat --------------------------------------------------------------------------------------


def test_chat_goes_through_the_template(tokenizer):
    ids = tokenizer.chat([{"role": "user", "content": "the"}])
    assert tokenizer.decode(ids) == "user: the\nassistant:"


@pytest.mark.parametrize(
    "messages", [[], "hello", [{"role": "user"}], [{"role": "user", "content": 3}], ["hi"]]
)
def test_chat_rejects_what_is_no_conversation(tokenizer, messages):
    with pytest.raises(ValueError, match="role"):
        tokenizer.chat(messages)


def test_messages_as_openais_clients_have_them():
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    cut = {"type": "function", "function": {"name": "add", "arguments": '{"a": '}}
    part = {"type": "text", "text": "a"}
    given = [
        {"role": "user", "content": [part, part | {"text": "b", "cache_control": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [call, cut], "reasoning": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    user, assistant, tool = template_messages(given)
    assert user == {"role": "user", "content": "ab"}
    assert assistant["content"] == ""
    assert assistant["reasoning_content"] == "hm"
    functions = [made["function"] for made in assistant["tool_calls"]]
    assert [function["arguments"] for function in functions] == [{"a": 1}, '{"a": ']
    assert tool == given[2]
    assert template_messages([user, assistant, tool]) == [user, assistant, tool]
    answer = ChatCompletionMessage(role="assistant", content="yes")
    assert answer.model_dump()["tool_calls"] is None
    assert template_messages([answer]) == [{"role": "assistant", "content": "yes"}]
    assert call["function"]["arguments"] == '{"a": 1}', "the caller's own stays as it is"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
        {"role": "assistant", "tool_calls": 5},
    ],
    ids=["image", "arguments", "calls"],
)
def test_messages_that_no_template_reads(message):
    words = r"every part must be|tool_calls.0.function.arguments is not|tool_calls=5"
    with pytest.raises(ValueError, match=rf"^messages.1: ({words})"):
        template_messages([{"role": "user", "content": "a"}, message])


def test_developers_are_the_system_where_the_template_does_not_know_them(folder):
    tokenizer = Tokenizer(str(folder))
    assert tokenizer.chat_text([{"role": "developer", "content": "a"}]).startswith("system: a")
    tokenizer.inner.chat_template = "{% if messages[0].role == 'developer' %}known{% endif %}"
    assert tokenizer.chat_text([{"role": "developer", "content": "a"}]) == "known"


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages.none.at }}", "{% for"])
def test_chat_with_a_template_that_fails_raises(folder, template):
    tokenizer = Tokenizer(str(folder))
    tokenizer.inner.chat_template = template
    with pytest.raises(ValueError, match="the chat template rejects these messages: "):
        tokenizer.chat([{"role": "user", "content": "the"}])


def test_chat_without_a_template_raises(folder, tmp_path):
    plain = shutil.copytree(folder, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        Tokenizer(str(plain)).chat([{"role": "user", "content": "the"}])


# --- stop strings ------------------------------------------------------------------------------


def search(pieces, stops, include=False):
    found = StopStrings(stops, include)
    shown = []
    for piece in pieces:
        shown.append(found.push(piece))
        if found.found is not None:
            return shown, found.found
    return [*shown, found.finish()], None


def test_text_before_a_stop_string_is_shown():
    assert search(["some EN", "D more"], ["END"]) == (["some ", ""], "END")
    assert search(["some EN", "D more"], ["END"], include=True) == (["some ", "END"], "END")


def test_what_may_begin_a_stop_string_is_held_back():
    assert search(["aab", "a", "ac"], ["aac"]) == (["aab", "", ""], "aac")
    assert search(["aab", "a", "ab"], ["aac"]) == (["aab", "", "aab", ""], None)


def test_the_first_of_several_stop_strings_counts():
    assert search(["one, two"], ["two", ","]) == (["one"], ",")


@given(
    text=st.text("ab", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=6),
    stop=st.text("ab", min_size=1, max_size=4),
)
def test_search_does_not_depend_on_the_pieces(text, cuts, stop):
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    shown, found = search(pieces, [stop])
    assert "".join(shown) == text.partition(stop)[0]
    assert found == (stop if stop in text else None)


def test_special_tokens_that_are_kept(tmp_path):
    own = Tokenizer(str(save_tokenizer(tmp_path, special=["<a>", "<b>"])))
    tokens = own.encode("the <a>self<b> in<|end|>", special=False)
    assert [own.special_tokens[text] for text in ("<|end|>", "<a>", "<b>")] == [0, 1, 2]

    def text(kept):
        stream = Detokenizer(own, tokens[:1], kept=kept)
        return "".join(stream.push(token) for token in tokens[1:]) + stream.finish()

    assert text(()) == text(("<c>",)) == " self in"
    assert text(("<a>",)) == " <a>self in"
    assert text(("<b>", "<a>")) == " <a>self<b> in"
