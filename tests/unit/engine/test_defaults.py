"""What `generation_config.json` sets."""

import json
import math
from dataclasses import replace

import pytest

from sidewinder.engine.defaults import generation_defaults
from sidewinder.testing import tiny_config

CONFIG = replace(tiny_config("mamba"), eos_token_ids=(2,))


def defaults(folder, values):
    (folder / "generation_config.json").write_text(json.dumps(values))
    return generation_defaults(folder, CONFIG)


def test_without_a_file(tmp_path):
    found = generation_defaults(tmp_path, CONFIG)
    assert (found.temperature, found.eos_token_ids) == (1.0, (2,))


def test_the_file_wins(tmp_path):
    found = defaults(tmp_path, {"temperature": 0.6, "eos_token_id": [5, 7]})
    assert (found.temperature, found.eos_token_ids) == (0.6, (5, 7))
    assert defaults(tmp_path, {"eos_token_id": 5}).eos_token_ids == (5,)
    assert defaults(tmp_path, {"temperature": None}).temperature == 1.0


def test_ids_beyond_the_vocabulary_never_end_a_text(tmp_path):
    found = defaults(tmp_path, {"eos_token_id": [5, CONFIG.vocab_size]})
    assert found.eos_token_ids == (5,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": math.nan}, "temperature=nan is not a number from 0 to 1e"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": 10**400}, "temperature=10"),
        ({"eos_token_id": "end"}, "eos_token_id='end'"),
        ([1], "no JSON object"),
    ],
    ids=str,
)
def test_broken_values_are_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        defaults(tmp_path, values)


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"temperature":')
    with pytest.raises(ValueError, match="not valid JSON"):
        generation_defaults(tmp_path, CONFIG)
