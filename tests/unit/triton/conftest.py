"""Where there is a GPU these tests run on it, and are marked so."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sidewinder.ops import launching


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def unchecked_integers(monkeypatch):
    """The interpreter looks for overflows of integers, which takes whole models a quarter of their
    time; the kernels' own tests are where that is looked for."""
    if launching.is_interpreting():
        from triton.runtime.interpreter import interpreter_builder as builder

        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
