"""What makes states of an earlier run strangers, and what does not."""

from dataclasses import replace

import pytest

from sidewinder.config import engine_config, load_model_config
from sidewinder.state.cache.fingerprint import fingerprint
from sidewinder.testing import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("mamba", tmp_path_factory.mktemp("model"))


def of(folder, **options):
    values = {"model": str(folder), "device": "cpu", "dtype": "float32"} | options
    return fingerprint(engine_config(**values), load_model_config(folder))


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"state_dtype": "bfloat16"}, {"weight_dtype": "int8"},
     {"all_reduce": "int8"}, {"all_reduce": "int4"}, {"rotate": True},
     {"state_cache_dtype": "int8"}, {"load_format": "random"}],
    ids=str,
)  # fmt: skip
def test_what_changes_a_state_counts(folder, options):
    assert of(folder, **options) != of(folder)


@pytest.mark.parametrize(
    "options",
    [{"tp": 2}, {"threads": 1}, {"max_batch_size": 3}, {"max_step_tokens": 100}, {"seed": 5},
     {"state_cache_dir": "x"}, {"state_cache_bytes": 10}, {"state_cache_interval": 64},
     {"scheduling": "latency"}, {"overlap": "none"}, {"timeout_s": 5.0},
     {"generation_config": "none"}],
    ids=str,
)  # fmt: skip
def test_what_changes_none_does_not(folder, options):
    assert of(folder, **options) == of(folder)


def test_weights_and_architecture_count(folder, tmp_path):
    other = save_tiny("mamba", tmp_path, seed=1)
    assert of(other) != of(folder)
    config = load_model_config(folder)
    engine = engine_config(model=str(folder), dtype="float32")
    assert fingerprint(engine, replace(config, norm_eps=0.5)) != fingerprint(engine, config)
