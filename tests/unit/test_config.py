"""User options: every rejection names the value and the remedy."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sidewinder.config import EngineConfig, engine_config


def test_defaults_are_valid():
    config = engine_config(model="folder")
    assert config == EngineConfig(model="folder")
    assert (config.tp, config.device, config.all_reduce) == (1, "auto", "auto")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": ""}, ["model=''", "folder"]),
        ({"model": 3}, ["model=3"]),
        ({"model": None}, ["model=None", "hub id"]),
        ({"generation_config": "vllm"}, ["auto or none"]),
        ({"revision": ""}, ["revision=''"]),
        ({"tokenizer": ""}, ["tokenizer=''"]),
        ({"tp": 0}, ["tp=0", "at least 1"]),
        ({"tp": True}, ["tp=True", "integer"]),
        ({"tp": 2.0}, ["tp=2.0", "integer"]),
        ({"max_batch_size": 0}, ["max_batch_size=0", "at least 1"]),
        ({"max_step_tokens": -5}, ["max_step_tokens=-5", "at least 1"]),
        ({"threads": 0}, ["threads=0", "at least 1", "None"]),
        ({"max_model_len": 0}, ["max_model_len=0", "None"]),
        ({"kv_cache_tokens": -1}, ["kv_cache_tokens=-1", "None"]),
        ({"seed": -1}, ["seed=-1", "at least 0"]),
        ({"seed": 2**63}, ["at most 9223372036854775807"]),
        ({"seed": "7"}, ["seed='7'"]),
        ({"device": "tpu"}, ["device='tpu'", "auto or cpu or cuda"]),
        ({"dtype": "int8"}, ["dtype='int8'", "bfloat16"]),
        ({"state_dtype": "float16"}, ["state_dtype='float16'", "float32 or bfloat16"]),
        ({"all_reduce": "int3"}, ["all_reduce='int3'", "int6 or int4 or a .json file"]),
        ({"all_reduce": "fast"}, ["all_reduce='fast'", "auto or exact"]),
        ({"all_reduce": 8}, ["all_reduce=8", "auto or exact"]),
        ({"all_reduce_kl": 0}, ["all_reduce_kl=0", "positive number of nats"]),
        ({"all_reduce_kl": "low"}, ["all_reduce_kl='low'"]),
        ({"all_reduce_kl": math.nan}, ["all_reduce_kl=nan"]),
        ({"all_reduce_kl": 0.1, "all_reduce": "exact"}, ["nothing to choose", "auto"]),
        ({"rotate": 1}, ["rotate=1", "True or False"]),
        ({"launch": "mpi"}, ["launch='mpi'", "process or torchrun"]),
        ({"load_format": "gguf"}, ["load_format='gguf'", "auto or random"]),
        ({"timeout_s": 0}, ["timeout_s=0", "positive"]),
        ({"timeout_s": math.inf}, ["timeout_s=inf"]),
        ({"timeout_s": 10**12}, ["timeout_s=1000000000000", "at most 1000000"]),
        ({"kv_cache_tokens": 10**30}, ["kv_cache_tokens=10", "at most 9223372036854775807"]),
        ({"timeout_s": math.nan}, ["timeout_s=nan"]),
        ({"timeout_s": "60"}, ["timeout_s='60'"]),
    ],
    ids=str,
)
def test_rejects(options, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        engine_config(**({"model": "folder"} | options))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("value", ["auto", "exact", "int8", "int6", "int4", "policy.json"])
def test_ways_to_sum(value):
    assert engine_config(model="folder", all_reduce=value).all_reduce == value


def test_unknown_keyword_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown option tensor_parallel; known: model, tp, dev"):
        engine_config(model="folder", tensor_parallel=2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tensor_parallel_size", "tensor_parallel_size: it is tp here;"),
        ("max_num_seqs", "max_num_seqs: it is max_batch_size here;"),
        ("no_enable_prefix_caching", "it is state_cache_bytes 0 here;"),
        ("tokeniser", r"tokeniser: did you mean tokenizer\?;"),
    ],
)
def test_unknown_keywords_say_what_is_meant(name, hint):
    with pytest.raises(ValueError, match=rf"unknown option {name}; .*{hint} known: model, tp"):
        engine_config(model="folder", **{name: 2})


def test_values_of_numpy_pathlib_and_torch():
    given = engine_config(
        model=Path("folder"),
        tokenizer=Path("words"),
        state_cache_dir=Path("states"),
        all_reduce=Path("policy.json"),
        max_batch_size=np.int32(4),
        timeout_s=np.float32(2.5),
        dtype=torch.bfloat16,
    )
    assert repr(given) == repr(
        engine_config(
            model="folder",
            tokenizer="words",
            state_cache_dir="states",
            all_reduce="policy.json",
            max_batch_size=4,
            timeout_s=2.5,
            dtype="bfloat16",
        )
    )
