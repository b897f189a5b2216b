"""Compiled grammars, as far as memory that is set aside for them reaches."""

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from sidewinder.sampling.structured import StructuredOutput


@dataclass(frozen=True, eq=False)
class CompiledGrammar:
    """A form that texts follow, each on a copy of its own.

    Attributes:
        matcher: llguidance's, at the beginning; its copies share nearly all of its memory.
        n_bytes: what it takes at most.
    """

    matcher: Any
    n_bytes: int


class GrammarCache:
    """Keeps compiled grammars: all that are in use, and the last ones that were. Any thread may
    call.

    Args:
        most_bytes: of all of them; what is in use is kept beyond that.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._n_bytes = 0
        # Dropping a grammar below may end it, which `_ended` counts in the same thread.
        self._lock = threading.RLock()
        self._alive = weakref.WeakValueDictionary[StructuredOutput, CompiledGrammar]()
        self._last = OrderedDict[StructuredOutput, CompiledGrammar]()

    @property
    def n_bytes(self) -> int:
        """Of all grammars that are kept."""
        return self._n_bytes

    def find(self, form: StructuredOutput) -> CompiledGrammar | None:
        """The grammar of `form`, if it is kept."""
        with self._lock:
            found = self._alive.get(form)
            if found is not None:
                self._last[form] = found
                self._last.move_to_end(form)
            return found

    def add(self, form: StructuredOutput, grammar: CompiledGrammar) -> None:
        """Keep `grammar` for whoever needs it next, in the place of older ones."""
        with self._lock:
            self._n_bytes += grammar.n_bytes
            weakref.finalize(grammar, self._ended, grammar.n_bytes).atexit = False
            self._alive[form] = self._last[form] = grammar
            self.make_room(0)

    def make_room(self, n_bytes: int) -> bool:
        """Forget grammars that nobody uses, the oldest first, until there is room for so many bytes
        more; whether there is."""
        with self._lock:
            while self._last and self._n_bytes + n_bytes > self.most_bytes:
                self._last.popitem(last=False)
            return self._n_bytes + n_bytes <= self.most_bytes

    def _ended(self, n_bytes: int) -> None:
        with self._lock:
            self._n_bytes -= n_bytes
