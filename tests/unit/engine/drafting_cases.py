"""Drafters that know how texts go on."""

import random

from sidewinder.engine.drafts import Drafter


class Prophet:
    """In place of `Drafter`: knows how texts go on, and is wrong about one token in four.

    Args:
        texts: prompts with what follows them.
        vocab_size: of wrong drafts.
    """

    def __init__(self, texts, vocab_size):
        self._texts, self._vocab_size = [tuple(text) for text in texts], vocab_size
        self._draws = random.Random(0)

    def __call__(self, prompt, prediction=()):
        return _Prophecy(self, prompt, prediction)

    def draft(self, text, most):
        known = next((own for own in self._texts if own[: len(text)] == tuple(text)), ())
        found = known[len(text) : len(text) + self._draws.randint(0, most)]
        wrong = [self._draws.random() < 0.25 for _ in found]
        return tuple(
            (token + is_wrong) % self._vocab_size
            for token, is_wrong in zip(found, wrong, strict=True)
        )


class _Prophecy(Drafter):
    def __init__(self, prophet, prompt, prediction):
        super().__init__(prompt, prediction)
        self._prophet = prophet

    def draft(self, most):
        return self._prophet.draft(self._text, most)
