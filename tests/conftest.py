"""Settings of all tests."""

import io
import logging
import os
import sys
import threading
import warnings
from importlib.util import find_spec

import pytest
import torch
import triton_interpreter
from hypothesis import settings
from rank_template import RankTemplate

from sidewinder import logs
from sidewinder.parallel import spawn

# Other processes share the cores of a test machine, so one example's time says nothing.
settings.register_profile("sidewinder", deadline=None)
settings.load_profile("sidewinder")

# Without a GPU, Triton's kernels run in its interpreter; it must be on before Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton") is not None:
        triton_interpreter.quicken()


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that several processes end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup():
    """Every test draws the same numbers in every run: what fails once fails again."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def forked_ranks():
    """Starts ranks of this process's tests by forks."""
    return RankTemplate().start


@pytest.fixture(autouse=True)
def quick_ranks(request, forked_ranks, monkeypatch):
    """Ranks are forked in all tests but those marked `fresh_ranks`, and not where CUDA is."""
    fresh = request.node.get_closest_marker("fresh_ranks") or torch.cuda.is_available()
    if not fresh:
        monkeypatch.setattr(spawn, "start_process", forked_ranks)


@pytest.fixture
def json_log(monkeypatch):
    """What a server logs, as JSON; logging is as before afterwards."""
    hooks = [(sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")]
    for owner, name in (*hooks, (warnings, "showwarning")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in logs.OURS]
    before = [(own.handlers, own.level, own.propagate) for own in loggers]
    root_level, stream = root.level, io.StringIO()
    logs.start_logging("json", stream)
    (handler,) = root.handlers
    yield stream
    root.removeHandler(handler)
    root.setLevel(root_level)
    for own, (handlers, level, propagate) in zip(loggers, before, strict=True):
        own.handlers, own.propagate = handlers, propagate
        own.setLevel(level)
