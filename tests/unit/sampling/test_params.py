"""`SamplingParams` and `StructuredOutput`: what they refuse, and the table of all options."""

import json
import math
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from sidewinder.sampling import SamplingParams, StructuredOutput


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": -3}, "max_tokens=-3"),
        ({"max_tokens": 2.5}, "max_tokens=2.5"),
        ({"max_tokens": True}, "max_tokens=True"),
        ({"min_tokens": -1}, "min_tokens=-1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is above max_tokens=8"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_p": 10**400}, "top_p=10.*is out of range"),
        ({"top_k": -2}, "top_k=-2"),
        ({"temperature": 10**400}, "temperature=10.*not a finite number"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"min_p": -0.5}, "min_p=-0.5"),
        ({"min_p": 2}, "min_p=2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty=1e-300"),
        ({"repetition_penalty": 1e6}, "repetition_penalty=1000000.0"),
        ({"logit_bias": {-1: 0.0}}, "logit_bias=-1"),
        ({"logit_bias": {"5": 0.0}}, "logit_bias='5'"),
        ({"logit_bias": {5: 101}}, r"logit_bias\[5\]=101"),
        ({"logit_bias": {5: math.nan}}, "not a finite number"),
        ({"logit_bias": [5]}, "token id: number"),
        ({"logit_bias": dict.fromkeys(range(2000), 1)}, "at most 1024"),
        ({"structured_output": {"regex": "a"}}, "StructuredOutput"),
        ({"structured_output": StructuredOutput(regex="a"), "min_tokens": 1}, "min_tokens=1"),
        ({"presence_penalty": 2.5}, "presence_penalty=2.5"),
        ({"frequency_penalty": -2.5}, "frequency_penalty=-2.5"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"stop": ("",)}, "stop=''"),
        ({"stop": [3]}, "stop=3"),
        ({"stop": 3}, "stop=3"),
        ({"stop_token_ids": [-1]}, "stop_token_ids=-1"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"prompt_logprobs": 1000}, "prompt_logprobs=1000"),
        ({"ignore_eos": 1}, "ignore_eos=1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_params_reject(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)


def test_params_accept_one_stop_string():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def test_both_words_for_all_tokens():
    assert SamplingParams(top_k=-1) == SamplingParams(top_k=0) != SamplingParams()


def test_numbers_of_numpy_are_numbers():
    given = SamplingParams(
        max_tokens=np.int64(5),
        temperature=np.float32(0.5),
        seed=np.uint64(2**64 - 1),
        stop_token_ids=[np.int32(3)],
        logit_bias={np.int64(4): np.float64(2.0)},
        prediction=list(np.arange(3)),
    )
    plain = SamplingParams(
        max_tokens=5,
        temperature=0.5,
        seed=2**64 - 1,
        stop_token_ids=[3],
        logit_bias={4: 2.0},
        prediction=[0, 1, 2],
    )
    assert given == plain
    assert repr(given) == repr(plain), "and Python's own from here on"


def test_every_option_is_documented():
    text = (Path(__file__).parents[3] / "docs" / "generation.md").read_text()
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    documented = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert {field.name for field in fields(SamplingParams)} <= documented


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "none given"),
        ({"regex": "a", "choice": ["b"]}, "regex, choice given"),
        ({"json": 3}, "not a JSON schema"),
        ({"json": "{"}, "not a JSON schema"),
        ({"json": False}, "not a JSON schema"),
        ({"json": {"a": {1, 2}}}, "not a JSON schema"),
        ({"json_object": 1}, "json_object=1"),
        ({"regex": ""}, "regex=''"),
        ({"regex": 5}, "regex=5"),
        ({"choice": "ab"}, "choice='ab'"),
        ({"choice": ["a", ""]}, "choice"),
        ({"grammar": "x" * (1 << 21)}, "characters"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_structured_outputs_reject(values, message):
    with pytest.raises(ValueError, match=message):
        StructuredOutput(**values)


def test_equal_schemas_are_equal():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert StructuredOutput(json=schema) == StructuredOutput(json=json.dumps(schema))
    assert len({StructuredOutput(json=schema), StructuredOutput(json=json.dumps(schema))}) == 1
