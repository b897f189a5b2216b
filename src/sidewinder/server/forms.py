"""Compiles the forms of texts while other requests go on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sidewinder.engine.intake import Intake
from sidewinder.sampling import StructuredOutput
from sidewinder.sampling.grammar import most_bytes
from sidewinder.sampling.grammar_cache import CompiledGrammar

LOOK_S = 0.05
"""Between two looks whether grammars in use have left room for another one."""


class FormQueue:
    """Compiles one form at a time, in the order in which they came, in a thread. A form whose
    grammar is kept never waits here.

    A grammar may take megabytes, and a request holds its own until it is complete; so the next one
    is compiled when there is room for it, and the requests behind it wait, as for slots.

    Args:
        intake: has the grammars.
        check: raises if no request may start any more.
    """

    def __init__(self, intake: Intake, check: Callable[[], None]) -> None:
        self._intake = intake
        self._check = check
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "forms")

    def find(self, form: StructuredOutput) -> CompiledGrammar | None:
        """The grammar of `form`, if it is kept."""
        return self._intake.grammars.cache.find(form)

    async def compile(self, form: StructuredOutput) -> CompiledGrammar:
        """The grammar of `form`, when it is its turn. Whoever waits may be cancelled.

        Raises:
            ValueError: if it does not compile.
            Exception: what `check` raises.
        """
        async with self._turn:
            self._check()
            found = self.find(form)  # Somebody before may have had the same one.
            if found is not None:
                return found
            n_bytes = most_bytes(form)
            while not self._intake.grammars.cache.make_room(n_bytes):
                await asyncio.sleep(LOOK_S)
                self._check()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._intake.grammars.compile, form)

    def close(self) -> None:
        """End the thread, after what it is compiling. Calling twice is fine."""
        self._thread.shutdown()
