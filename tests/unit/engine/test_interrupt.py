"""Ctrl-C inside a step."""

import os
import signal
import threading
import time

import pytest

from sidewinder.engine import interrupt
from sidewinder.engine.interrupt import interrupt_after


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def run(*actions):
    with interrupt_after():
        for action in actions:
            action()


def test_the_block_ends_first():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        run(ctrl_c, lambda: time.sleep(0.01), lambda: reached.append(True))
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_breaks_off():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        run(ctrl_c, ctrl_c, lambda: reached.append(True))
    assert not reached


def test_a_block_that_lasts_is_broken_off(monkeypatch):
    monkeypatch.setattr(interrupt, "PATIENCE_S", 0.05)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(ctrl_c, lambda: time.sleep(30))
    assert time.monotonic() - started < 20


def test_without_ctrl_c_nothing_happens():
    with interrupt_after():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_of_the_block_comes_through():
    with pytest.raises(ZeroDivisionError), interrupt_after():
        raise ZeroDivisionError


def test_other_handlers_and_threads_are_left_alone():
    seen = []
    previous = signal.signal(signal.SIGINT, lambda *_: seen.append("own"))
    try:
        with interrupt_after():
            ctrl_c()
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == ["own"]

    def in_thread():
        with interrupt_after():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen[1] is signal.default_int_handler
