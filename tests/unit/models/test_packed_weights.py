"""Models on packed weights give what they give on plain ones."""

import pytest
import torch
from parity_harness import Driver, random_tokens
from torch import Tensor

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import Collectives
from sidewinder.layers.overlap import OVERLAPS
from sidewinder.models.registry import build_model
from sidewinder.ops import native, native_linear
from sidewinder.packing import PackedWeight, pack_weights
from sidewinder.parallel.group import TensorParallel
from sidewinder.quantise import QuantisedWeight, quantise_weights
from sidewinder.testing import TINY, assert_close, relative_error, run_ranks, tiny_config

SHORT = {"num_hidden_layers": 3}
"""What the two kinds of int8 kernels differ by grows with depth, and beyond the bound below."""

CASES = [
    ("mamba", {}),
    ("falcon_mamba", {}),
    ("mamba2", {"n_groups": 2}),
    ("zamba", {}),
    (
        "zamba2",
        {"hidden_size": 48, "num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"]},
    ),
    ("bamba", SHORT | {"attention_bias": True, "mlp_bias": True, "attn_layer_indices": [1]}),
    ("granitemoehybrid", SHORT | {"layer_types": ["mamba", "attention", "mamba"]}),
    ("nemotron_h", {"mlp_bias": True, "use_bias": True}),
    ("falcon_h1", {"mlp_bias": True, "attention_bias": True}),
    ("jamba", {"num_hidden_layers": 2, "mamba_proj_bias": True}),
]


BITS = {"auto": 16, "int8": 8, "int4": 4}
here = native_linear.packed_bits(torch.device("cpu"))


@pytest.mark.parametrize("weight_dtype", ["auto", "int8", "int4"])
@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_packed_models_give_the_same(family, overrides, tp, weight_dtype):
    if BITS[weight_dtype] not in here:
        pytest.skip(
            f"level {native.isa()} does not read packed weights of {BITS[weight_dtype]} bits"
        )
    config = tiny_config(family, **overrides)
    sequences = random_tokens(config.vocab_size, [5, 1, 40])

    def rank(group: TensorParallel, collectives: Collectives):
        plain = random_shard(config, group, torch.bfloat16)
        tied = "lm_head.weight" not in plain
        reference, reference_dtype = plain, torch.bfloat16
        if weight_dtype != "auto":
            plain, tied = quantise_weights(plain, tied, weight_dtype), False
        if weight_dtype != "int4":
            reference = {name: in_float32(weight) for name, weight in plain.items()}
            reference_dtype = torch.float32
        packed = pack_weights(dict(plain), tied, here)
        assert any(isinstance(weight, PackedWeight) for weight in packed.values())
        runs = []
        for weights, dtype in (
            (plain, torch.bfloat16), (packed, torch.bfloat16), (reference, reference_dtype),
        ):  # fmt: skip
            model = build_model(config, group, weights, collectives, OVERLAPS["both"])
            runs.append(torch.cat(Driver(model, 40, dtype).run(sequences, [40, 1, 7])))
        return runs

    for plain, packed, reference in run_ranks(tp, rank):
        rounding = relative_error(plain, reference)
        # Kernels that differ by little round some activations to another bfloat16, and a model
        # that such rounding moves by more than the first bound is moved by as much again.
        bound = max(2e-2, 1.5 * rounding)
        if weight_dtype == "int4":
            # Packed it has rows in 8 bits, else in 16; that is little beside the weights' rounding.
            bound = 0.2 * rounding
        assert_close("packed", plain, packed, bound)


def in_float32(weight: Tensor | QuantisedWeight) -> Tensor:
    """A weight or its integers' values."""
    return (weight.dequantise() if isinstance(weight, QuantisedWeight) else weight).float()


@pytest.mark.parametrize("family", TINY)
def test_every_matrix_that_linear_alone_reads_is_packed(family):
    adapted = {"use_shared_attention_adapter": True} if family == "zamba2" else {}
    config = tiny_config(family, tie_word_embeddings=False, **adapted)
    packed = pack_weights(random_shard(config, TensorParallel(), torch.bfloat16), False, [16])
    others = ("embedding.weight", "conv.weight", "A_log", "router.weight")
    for name, weight in packed.items():
        if not name.endswith(others) and len(weight.shape) == 2:
            assert isinstance(weight, PackedWeight), name
