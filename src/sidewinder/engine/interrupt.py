"""Ctrl-C between steps instead of inside one, so that the engine stays usable after it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE_S = 2.0
"""How long a step may go on after Ctrl-C before it is broken off."""


@contextmanager
def interrupt_after() -> Iterator[None]:
    """Raise KeyboardInterrupt after the block if Ctrl-C came inside it.

    A second Ctrl-C, or a block that lasts `PATIENCE_S` longer, raises it inside. Does nothing in
    other threads, which Ctrl-C never reaches, and where the program handles SIGINT itself.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    timer: threading.Timer | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal timer
        if timer is not None:
            signal.default_int_handler(number, frame)
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(PATIENCE_S, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if timer is not None:
            timer.cancel()
    if timer is not None:
        raise KeyboardInterrupt
