"""Holds tokens back for a moment, so that a stream's event may bring several.

An event costs processor time between the engine and the client's screen: a good part of what a
small model's token costs (docs/serving.md has the figures). Where steps are short and streams are
many, an event per token takes cores away from the steps.
"""

from collections.abc import Sequence

from sidewinder.engine.outputs import Increment

EVENTS_PER_S = 250.0
"""Of all streams together, about."""
LONGEST_S = 0.1
"""Between two events of a stream whose steps are shorter."""

Stamped = tuple[Increment, float]
"""An increment, and when its step ended (`time.perf_counter`)."""


class Gatherer:
    """Says what is to be delivered after each step; the rest stays until later.

    What comes before a request's first token, with it, and at its end is never held back. Nothing
    is held through a step that, taking as long as the one before, would end too late: where steps
    are longer than the pause, every token comes at once.

    Args:
        events_per_s: a request's pause grows with the running requests, so that all of them
            together have about so many events; None holds nothing back.
    """

    def __init__(self, events_per_s: float | None = EVENTS_PER_S) -> None:
        self._per_request_s = 0.0 if events_per_s is None else 1 / events_per_s
        # By request, from its first token to its end.
        self._held: dict[int, list[Stamped]] = {}
        self._delivered_s = self._stepped_s = 0.0

    def add(self, increments: Sequence[Increment], now_s: float, n_running: int) -> list[Stamped]:
        """Take what a step brought; give what is due, in order for each request.

        Args:
            increments: of the step.
            now_s: its end, on a clock that never goes back.
            n_running: requests that hold a slot.
        """
        due = []
        for increment in increments:
            due += self._take(increment, now_s)
        step_s, self._stepped_s = now_s - self._stepped_s, now_s
        pause_s = min(LONGEST_S, n_running * self._per_request_s)
        if now_s + step_s - self._delivered_s > pause_s:
            self._delivered_s = now_s
            due += self.rest()
        return due

    def drop(self, request_id: int) -> None:
        """Forget a request that was aborted."""
        self._held.pop(request_id, None)

    def rest(self) -> list[Stamped]:
        """All that is held."""
        found = []
        for held in self._held.values():
            found += held
            held.clear()
        return found

    def _take(self, increment: Increment, now_s: float) -> list[Stamped]:
        """Hold an increment; or give it, and what was held of its request."""
        ends = increment.finish_reason is not None
        held = self._held.get(increment.request_id)
        if held is None:
            if increment.token_ids and not ends:
                self._held[increment.request_id] = []
            return [(increment, now_s)]
        held.append((increment, now_s))
        return self._held.pop(increment.request_id) if ends else []
