"""Drafts: guesses of what a text says next, for steps that check several tokens of it at once.

A step of a few tokens takes hardly longer than a step of one: both read all weights. So drafts run
together with the last token that is known, and what is drawn behind each token tells whether the
draft after it is accepted. The first one that is not has its right token drawn in its place, and
what follows it is forgotten. Each token is drawn as it would be without drafts, from the same
random bits: the text stays the same, whatever the temperature.

Texts repeat themselves (code, quotations, edits, loops), so the draft is what followed the last
time that the text's end occurred. Where that was is found as compressors do it (LZ77): a table
of where every `SHORTEST` tokens were last, and of each such place the one before it.
"""

from collections.abc import Sequence

SHORTEST = 2
"""Tokens that must agree before there is a draft."""
LONGEST = 32
"""Agreement beyond this tells no more about what follows."""
CANDIDATES = 8
"""Places that are compared, from the last one backwards."""
MOST_KNOWN = 1 << 15
"""Tokens of a prompt that are looked at, those at its end: the table takes time and memory."""
MOST_ROWS = 16
"""Tokens of a step up to which drafts are added: beyond, products are bound by arithmetic."""


def room_for_drafts(n_decodes: int) -> int:
    """How many drafts a step may have beside so many sequences that decode."""
    return max(0, MOST_ROWS - n_decodes)


class Drafter:
    """Drafts the next tokens of one text.

    Args:
        prompt: the text so far.
        prediction: what somebody expects to follow it.
    """

    def __init__(self, prompt: Sequence[int], prediction: Sequence[int] = ()) -> None:
        self._text: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}
        self._before: list[int] = []
        if prediction:
            # As if the prompt had been followed by it once before.
            for token in (*prompt[-LONGEST:], *prediction[:MOST_KNOWN]):
                self.extend(token)
        for token in prompt[-MOST_KNOWN:]:
            self.extend(token)

    def extend(self, token: int) -> None:
        """The text goes on with `token`."""
        # Where an ending occurred is written down when it is known what followed it, so that a
        # search never finds the text's own end.
        end = len(self._text)
        if end < SHORTEST:
            self._before.append(-1)
        else:
            key = self._ending()
            self._before.append(self._last.get(key, -1))
            self._last[key] = end
        self._text.append(token)

    def draft(self, most: int) -> tuple[int, ...]:
        """At most so many next tokens; none where the text's end is new.

        As many as agree before them: the longer texts agree, the longer they go on to.
        """
        place, agreement = self._longest_match()
        period = len(self._text) - place
        # What was drafted counts as text: a loop goes on for ever.
        return tuple(self._text[place + i % period] for i in range(min(most, agreement)))

    def _ending(self) -> tuple[int, ...]:
        return tuple(self._text[-SHORTEST:])

    def _longest_match(self) -> tuple[int, int]:
        """Where the text goes on behind an earlier occurrence of its ending, and for how many
        tokens they agree: of the last occurrences the longest; 0 if there is none."""
        place = self._last.get(self._ending(), -1)
        best, longest = place, 0
        for _ in range(CANDIDATES):
            if place < 0 or longest == LONGEST:
                break
            length = self._agreement(place)
            if length > longest:
                best, longest = place, length
            place = self._before[place]
        return best, longest

    def _agreement(self, place: int) -> int:
        """How many tokens before `place` are those at the end of the text."""
        text, end, length = self._text, len(self._text), SHORTEST
        most = min(LONGEST, place)
        while length < most and text[place - 1 - length] == text[end - 1 - length]:
            length += 1
        return length
