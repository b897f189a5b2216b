"""Detokenisation and stop strings joined."""

import pytest

from sidewinder.engine.text import TextStream
from sidewinder.sampling import SamplingParams


class Bytes:
    """A toy tokenizer: token i is byte i."""

    special_ids = frozenset[int]()

    def decode(self, ids, skip_special_tokens=True):  # noqa: ARG002
        return bytes(ids).decode("utf-8", errors="replace")


def pieces(text, last, cut=None, **params):
    """What a stream shows for each byte of `text` (up to `cut`), the last one ending it."""
    stream = TextStream(Bytes(), SamplingParams(**params), prompt=())
    tokens = list(text.encode())[:cut]
    reasons = [None] * (len(tokens) - 1) + [last]
    return [stream.push(token, reason) for token, reason in zip(tokens, reasons, strict=True)]


def test_characters_come_whole():
    assert pieces("aé🙂", "length") == ["a", "", "é", "", "", "", "🙂"]


def test_an_unfinished_character_comes_out_with_the_last_token():
    assert pieces("a🙂", "length", cut=3) == ["a", "", "\ufffd"]


def test_an_unfinished_character_comes_out_before_a_stop_id():
    assert pieces("a🙂", "stop", cut=4) == ["a", "", "", "\ufffd"]


@pytest.mark.parametrize(("include", "shown"), [(False, "ab"), (True, "abc")])
def test_the_text_of_a_stop_id(include, shown):
    assert "".join(pieces("abc", "stop", include_stop_str_in_output=include)) == shown


def test_a_stop_string_inside_the_last_piece():
    stream = TextStream(Bytes(), SamplingParams(stop="b"), prompt=())
    assert [stream.push(token, None) for token in b"ab"] == ["a", ""]
    assert stream.stopped


def test_without_a_tokenizer_nothing_is_shown():
    stream = TextStream(None, SamplingParams(stop="a"), prompt=())
    assert stream.push(97, None) == ""
    assert not stream.stopped
