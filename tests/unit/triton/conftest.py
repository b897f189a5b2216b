"""Where there is a GPU these tests run on it, and are marked so."""

from pathlib import Path

import pytest
import torch

from sidewinder.ops.selective_scan import triton as selective_scan


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def short_sequences_are_cut(monkeypatch):
    """So that tests of a few tokens see how scans of hundreds are passed on."""
    monkeypatch.setattr(selective_scan, "WHOLE", 8)
