"""The order of the tests on a card, where a suite may end before all have run."""

from parity_cases import CASES

SEEN = ("mamba", "falcon_mamba", "mamba2", "zamba")
"""Families that a card has run (docs/gpu.md)."""


def pytest_collection_modifyitems(items):
    """In each file, tests of families that no card has run come first."""
    for file in dict.fromkeys(item.path for item in items if "tests/gpu/" in item.path.as_posix()):
        places = [place for place, item in enumerate(items) if item.path == file]
        own = sorted((items[place] for place in places), key=_is_seen)
        for place, item in zip(places, own, strict=True):
            items[place] = item


def _is_seen(item):
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = [value for value in parameters if isinstance(value, str)]
    return any(CASES.get(value, (value,))[0] in SEEN for value in named)
