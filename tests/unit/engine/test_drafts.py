"""Drafts against a plain search of the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from sidewinder.engine import drafts
from sidewinder.engine.drafts import CANDIDATES, LONGEST, SHORTEST, Drafter, room_for_drafts

texts = st.lists(st.integers(0, 2), max_size=90)


def plain_draft(text, n_tokens):
    """What followed the longest agreement with the text's end, of the last places that agree in
    `SHORTEST` tokens; of equally long ones the last."""
    best, longest, n_seen = 0, 0, 0
    for place in range(len(text) - 1, SHORTEST - 1, -1):
        if text[place - SHORTEST : place] != text[-SHORTEST:]:
            continue
        length = SHORTEST
        while length < min(LONGEST, place) and text[place - length - 1] == text[-length - 1]:
            length += 1
        if length > longest:
            best, longest = place, length
        n_seen += 1
        if n_seen == CANDIDATES:
            break
    written = list(text)
    for place in range(best, best + min(n_tokens, longest)):
        written.append(written[place])
    return tuple(written[len(text) :])


@given(texts, texts, st.integers(1, 12))
def test_it_is_what_followed_the_longest_agreement(prompt, output, n_tokens):
    drafter = Drafter(prompt)
    for token in output:
        drafter.extend(token)
    assert drafter.draft(n_tokens) == plain_draft([*prompt, *output], n_tokens)


def test_a_loop_is_drafted_beyond_the_texts_end():
    assert Drafter([9, *[1, 2] * 3]).draft(5) == (1, 2, 1, 2)


def test_the_longer_the_agreement_the_longer_the_draft():
    text = list(range(10, 40))
    for agreement in (1, 2, 3, 12):
        drafter = Drafter([*text, 5, *text[:agreement]])
        expected = text[agreement : 2 * agreement] if agreement >= SHORTEST else []
        assert drafter.draft(15) == tuple(expected)
        assert drafter.draft(2) == tuple(expected[:2])


def test_a_short_text_has_no_drafts():
    for n_tokens in range(SHORTEST + 1):
        assert Drafter([1] * n_tokens).draft(4) == ()


def test_only_the_end_of_a_long_prompt_is_looked_at(monkeypatch):
    monkeypatch.setattr(drafts, "MOST_KNOWN", 5)
    assert Drafter([1, 2, 3, 4, 1, 2]).draft(1) == ()
    assert Drafter([7, 1, 2, 3, 1, 2]).draft(1) == (3,)


def test_a_prediction_is_drafted_from_its_beginning_on():
    prompt, prediction = [1, 2, 3, 4, 5], [7, 8, 9, 7, 6]
    drafter = Drafter(prompt, prediction)
    assert drafter.draft(3) == (7, 8, 9)
    for token in (0, 8, 9):  # An error, and back.
        drafter.extend(token)
    assert drafter.draft(2) == (7, 6)


def test_large_batches_leave_no_room():
    assert room_for_drafts(1) > room_for_drafts(4) > 0
    assert room_for_drafts(64) == 0
