"""What `generation_config.json` sets."""

import json
import math
from dataclasses import replace

import pytest

from sidewinder.engine.defaults import NEUTRAL, generation_defaults
from sidewinder.testing import tiny_config

CONFIG = replace(tiny_config("mamba"), eos_token_ids=(2,))


def defaults(folder, values):
    (folder / "generation_config.json").write_text(json.dumps(values))
    return generation_defaults(folder, CONFIG)


def test_without_a_file(tmp_path):
    found = generation_defaults(tmp_path, CONFIG)
    assert (found.sampling, found.eos_token_ids) == (NEUTRAL, (2,))


def test_the_file_wins(tmp_path):
    given = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
    }
    found = defaults(tmp_path, given | {"eos_token_id": [5, 7]})
    assert (found.sampling, found.eos_token_ids) == (given, (5, 7))
    assert defaults(tmp_path, {"eos_token_id": 5}).eos_token_ids == (5,)
    assert defaults(tmp_path, {"temperature": None, "top_p": 0.5}).sampling == NEUTRAL | {
        "top_p": 0.5
    }


def test_the_likeliest_token_where_the_file_does_not_sample(tmp_path):
    found = defaults(tmp_path, {"do_sample": False, "temperature": 0.6})
    assert found.sampling["temperature"] == 0
    assert defaults(tmp_path, {"do_sample": True}).sampling == NEUTRAL


def test_only_its_endings_are_taken(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"top_p": 7, "eos_token_id": 5}')
    found = generation_defaults(tmp_path, CONFIG, samples=False)
    assert (found.sampling, found.eos_token_ids) == (NEUTRAL, (5,))


def test_what_is_not_supported_is_named(tmp_path):
    given = {"num_beams": 4, "typical_p": 1.0, "suppress_tokens": [], "no_repeat_ngram_size": 3}
    with pytest.warns(UserWarning, match="sets no_repeat_ngram_size, num_beams: not supported"):
        defaults(tmp_path, given)


def test_ids_beyond_the_vocabulary_never_end_a_text(tmp_path):
    found = defaults(tmp_path, {"eos_token_id": [5, CONFIG.vocab_size]})
    assert found.eos_token_ids == (5,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": "hot"}, "temperature='hot'"),
        (
            {"temperature": math.nan},
            "temperature=nan is not a finite number; use a value of 0 or more",
        ),
        ({"top_p": 1.5}, r"generation_config.json: top_p=1.5 .* generation_config='none'"),
        ({"top_k": 2.5}, "top_k=2.5 is not an integer"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
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
