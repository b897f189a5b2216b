"""Tiny checkpoints of every family, saved once."""

import pytest

from sidewinder.testing import save_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(family, **overrides)`: a transformers checkpoint, saved once."""
    folders = {}

    def folder(family, **overrides):
        key = (family, *sorted(overrides.items()))
        if key not in folders:
            folders[key] = save_tiny(family, tmp_path_factory.mktemp(family), **overrides)
        return folders[key]

    return folder
