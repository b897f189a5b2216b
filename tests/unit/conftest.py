"""A tiny model for tests of `LLM`."""

import pytest
from llm_cases import make_model

from sidewinder import LLM


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Mamba model with a tokenizer; not to be changed."""
    folder = tmp_path_factory.mktemp("mamba")
    make_model("mamba", folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    """`folder`, loaded: four slots, 100 tokens at most per request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIDEWINDER_POISON", "1")
        llm = LLM(folder, dtype="float32", max_batch_size=4, max_model_len=100)
    with llm:
        yield llm
