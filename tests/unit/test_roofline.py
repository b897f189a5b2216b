"""The matrices whose reads and products are a model's floor are those of its plan."""

import re
from fractions import Fraction
from math import prod

import pytest
import torch

from sidewinder.bench import roofline
from sidewinder.bench.roofline import model_work
from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.checkpoint.random import random_shard
from sidewinder.parallel.group import TensorParallel
from sidewinder.quantise import quantise_weights
from sidewinder.sharding.plan import parameter_shapes
from sidewinder.testing import TINY, tiny_config

NO_PRODUCTS = ("embedding.weight", "lm_head.weight", "conv.weight", "A_log")


def calls_of(parameter, config):
    """How often a token passes it: of the experts alike, as often as they are chosen."""
    blocks = config.attention.blocks if config.attention else {}
    for block, layers in blocks.items():
        if parameter.startswith(f"{block}."):
            return len(layers)
    if re.search(r"\.experts\.\d", parameter):
        return Fraction(config.experts.router.n_chosen, config.experts.n_experts)
    return 1


LATENT = TINY["nemotron_experts"] | {"moe_latent_size": 12}


@pytest.mark.parametrize("values", [*SHAPES.values(), LATENT], ids=[*SHAPES, "latent"])
def test_every_matrix_counts_as_often_as_a_token_passes_it(values):
    config = parse_model_config(values)
    elements = 0
    for parameter, shape in parameter_shapes(config).items():
        if len(shape) == 2 and not parameter.endswith(NO_PRODUCTS):
            elements += calls_of(parameter, config) * prod(shape)
    assert elements == int(elements)
    work = model_work(config, element_bytes=2)
    assert sum(out * inner * count for out, inner, count in work.gemms) == elements
    assert work.flops_per_token == 2 * elements
    head = config.vocab_size * config.d_model
    assert work.bytes_per_decode_step == 2 * (elements + head)


@pytest.mark.parametrize("weight_dtype", ["int8", "int4"])
@pytest.mark.parametrize("family", ["mamba", "mamba2", "zamba2", "granitemoehybrid"])
def test_rounded_matrices_count_with_their_scales(family, weight_dtype):
    config = tiny_config(family)
    weights = quantise_weights(
        random_shard(config, TensorParallel(), torch.bfloat16), config.tie_embeddings, weight_dtype
    )
    n_bytes = 0
    for name, weight in weights.items():
        if name == "lm_head.weight" or (len(weight.shape) == 2 and not name.endswith(NO_PRODUCTS)):
            each = 2 * prod(weight.shape) if isinstance(weight, torch.Tensor) else weight.nbytes
            n_bytes += calls_of(name, config) * each
    assert model_work(config, 2, weight_dtype).bytes_per_decode_step == int(n_bytes)


def test_a_measuring_process_that_fails_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(roofline.sys, "executable", "/bin/false")
    work = model_work(parse_model_config(SHAPES["mamba-130m"]), element_bytes=4)
    with pytest.raises(RuntimeError, match=r"2 of 2 processes.*--no-ceilings"):
        roofline.measure_ceilings(work, tp=2, threads=1, dtype="float32", rows=1)
