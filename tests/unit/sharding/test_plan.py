"""The plan covers every parameter, for tiny and published models."""

from math import prod

import pytest

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.checkpoint.names import checkpoint_sources
from sidewinder.model_config import RotaryConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.dims import LocalDims
from sidewinder.sharding.plan import parameter_shapes, sharding_plan
from sidewinder.sharding.slicing import Bands, Replicate, local_shape
from sidewinder.testing import TINY, tiny_config

REPLICATED = (
    "norm.weight", "input_norm.weight", "pre_ff_norm.weight", "final_norm.weight",
    "out_proj.bias", "linear.weight", "o.bias", "down.bias", "router.weight", "router.bias",
    "A.weight",
)  # fmt: skip

PUBLISHED = {
    # name: d_model, layers, d_inner, d_state, dt_rank, vocabulary (docs/sharding.md)
    "mamba-130m": (768, 24, 1536, 16, 48, 50280),
    "mamba-370m": (1024, 48, 2048, 16, 64, 50280),
    "mamba-790m": (1536, 48, 3072, 16, 96, 50280),
    "mamba-1.4b": (2048, 48, 4096, 16, 128, 50280),
    "mamba-2.8b": (2560, 64, 5120, 16, 160, 50280),
    "falcon-mamba-7b": (4096, 64, 8192, 16, 256, 65024),
    "zamba-7b": (3712, 76, 7424, 16, 232, 32000),
    "zamba2-1.2b": (2048, 38, 4096, 128, 0, 32000),
    "zamba2-2.7b": (2560, 54, 5120, 64, 0, 32000),
    "zamba2-7b": (3584, 81, 7168, 64, 0, 32000),
    "mamba2-2.7b": (2560, 64, 5120, 128, 0, 50288),
    "bamba-9b": (4096, 32, 8192, 128, 0, 128256),
    "granite-4.0-h-350m": (768, 32, 1536, 128, 0, 100352),
    "granite-4.0-h-1b": (1536, 40, 3072, 128, 0, 100352),
    "nemotron-h-8b": (4096, 52, 8192, 128, 0, 131072),
    "falcon-h1-0.5b": (1024, 36, 1536, 128, 0, 32784),
    "falcon-h1-1.5b": (2048, 24, 3072, 256, 0, 65537),
    "falcon-h1-1.5b-deep": (1280, 66, 1536, 256, 0, 65537),
    "falcon-h1-3b": (2560, 32, 4096, 256, 0, 65537),
    "falcon-h1-7b": (3072, 44, 3072, 256, 0, 130049),
    "falcon-h1-34b": (5120, 72, 4096, 256, 0, 261120),
    "jamba-v0.1": (4096, 32, 8192, 16, 256, 65536),
    "jamba-reasoning-3b": (2560, 28, 5120, 16, 160, 65536),
}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name, size):
    config = parse_model_config(SHAPES[name])
    if size == 8 and name == "falcon-h1-1.5b-deep":
        with pytest.raises(ValueError, match=r"6 attention heads.*valid tp: 1 to 6"):
            sharding_plan(config, size)
        return
    sizes = (config.d_model, config.n_layers, config.d_inner, config.d_state, config.dt_rank)
    assert (*sizes, config.vocab_size) == PUBLISHED[name]
    shapes, plan = parameter_shapes(config), sharding_plan(config, size)
    ranks = [LocalDims.of(config, TensorParallel(rank, size)) for rank in range(size)]
    assert sum(dims.d_inner_local for dims in ranks) == config.d_inner
    assert max(dims.d_inner_local for dims in ranks) <= 1.15 * config.d_inner / size
    for name_, rule in plan.items():
        if not isinstance(rule, Replicate):
            total = sum(local_shape(rule, shapes[name_], rank)[rule.dim] for rank in range(size))
            assert total >= shapes[name_][rule.dim]


def test_published_shared_blocks():
    small, middle, large = (
        parse_model_config(SHAPES[f"zamba2-{size}"]) for size in ("1.2b", "2.7b", "7b")
    )
    assert small.attention.blocks == {"shared": (5, 11, 17, 23, 29, 35)}
    assert (small.attention.adapter_rank, small.mlp.adapter_rank) == (128, 128)
    assert middle.attention.blocks == {
        "shared.0": (6, 18, 30, 42, 51),
        "shared.1": (12, 24, 36, 47),
    }
    assert (middle.attention.adapter_rank, middle.attention.rotary) == (0, None)
    assert (middle.attention.n_heads, middle.attention.head_dim) == (32, 160)
    assert (large.n_heads, large.head_dim, large.n_groups) == (112, 64, 2)
    assert len(large.attention.layers) == 13
    assert large.attention.rotary == RotaryConfig(theta=10000.0, width=224)


def test_published_hybrid_and_heads():
    zamba = parse_model_config(SHAPES["zamba-7b"])
    assert zamba.attention is not None
    assert len(zamba.attention.layers) == 13
    assert (zamba.attention.n_heads, zamba.attention.head_dim) == (16, 464)
    mamba2 = parse_model_config(SHAPES["mamba2-2.7b"])
    assert (mamba2.n_heads, mamba2.head_dim, mamba2.n_groups) == (80, 64, 1)
    bamba = parse_model_config(SHAPES["bamba-9b"])
    assert (bamba.n_heads, bamba.head_dim, bamba.n_groups) == (128, 64, 1)
    assert bamba.attention is not None
    assert bamba.attention.layers == (9, 18, 27)
    assert len(bamba.mixer_layers) == 29
    assert (bamba.attention.n_heads, bamba.attention.n_kv_heads) == (32, 8)
    assert bamba.attention.rotary == RotaryConfig(theta=10000.0, width=64)
    granite = parse_model_config(SHAPES["granite-4.0-h-350m"])
    assert (granite.n_heads, granite.head_dim) == (48, 32)
    assert granite.attention is not None
    assert granite.attention.layers == (10, 13, 17, 27)
    assert (granite.attention.head_dim, granite.attention.rotary) == (64, None)
    nemotron = parse_model_config(SHAPES["nemotron-h-8b"])
    assert (nemotron.n_heads, nemotron.head_dim, nemotron.n_groups) == (128, 64, 8)
    assert nemotron.attention is not None
    assert nemotron.attention.layers == (7, 18, 29, 40)
    assert len(nemotron.mixer_layers) == len(nemotron.mlp_layers) == 24
    nano = parse_model_config(SHAPES["nemotron-3-nano-30b"])
    assert (len(nano.mixer_layers), len(nano.attention_layers), len(nano.expert_layers)) == (
        23, 6, 23,
    )  # fmt: skip
    falcon = parse_model_config(SHAPES["falcon-h1-34b"])
    assert (falcon.n_heads, falcon.head_dim, falcon.n_groups) == (32, 128, 2)
    assert falcon.attention is not None
    assert falcon.mixer_layers == falcon.attention_layers == falcon.mlp_layers == tuple(range(72))
    mini, small = (parse_model_config(SHAPES[f"jamba-{size}"]) for size in ("v0.1", "reasoning-3b"))
    assert mini.attention_layers == (4, 12, 20, 28)
    assert mini.expert_layers == tuple(range(1, 32, 2))
    assert mini.mlp_layers == tuple(range(0, 32, 2))
    assert (small.attention_layers, small.expert_layers) == ((7, 21), ())
    assert (small.attention.n_kv_heads, small.attention.head_dim) == (1, 128)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("zamba2-1.2b", "1.2B"),
        ("zamba2-2.7b", "2.66B"),
        ("zamba2-7b", "7.4B"),
        ("bamba-9b", "9.78B"),
        ("granite-4.0-h-350m", "0.34B"),
        ("granite-4.0-h-1b", "1.5B"),
        ("granite-4.0-h-tiny", "6.94B"),
        ("nemotron-h-8b", "8.1B"),
        ("nemotron-3-nano-30b", "31.6B"),
        ("falcon-h1-0.5b", "0.52B"),
        ("falcon-h1-1.5b", "1.55B"),
        ("falcon-h1-1.5b-deep", "1.55B"),
        ("falcon-h1-3b", "3.15B"),
        ("falcon-h1-7b", "7.59B"),
        ("falcon-h1-34b", "33.6B"),
        ("jamba-v0.1", "51.6B"),
        ("jamba-reasoning-3b", "3.0B"),
    ],
)
def test_published_numbers_of_parameters(name, published):
    shapes = parameter_shapes(parse_model_config(SHAPES[name]))
    digits = len(published.split(".")[1]) - 1
    assert f"{sum(map(prod, shapes.values())) / 1e9:.{digits}f}B" == published


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("family", TINY)
def test_only_listed_parameters_are_replicated(family, size):
    biased = (
        {"attention_bias": True, "mlp_bias": True}
        if family in ("bamba", "nemotron_h", "falcon_h1")
        else {}
    )
    config = tiny_config(family, **biased)
    for name, rule in sharding_plan(config, size).items():
        gated = config.is_mamba2 and name.endswith("mixer.norm.weight")
        assert isinstance(rule, Replicate) == (name.endswith(REPLICATED) and not gated), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", TINY)
def test_plan_shapes_and_sources_name_the_same_parameters(family, tied):
    config = tiny_config(family, tie_word_embeddings=tied)
    assert set(sharding_plan(config, 2)) == set(parameter_shapes(config))
    assert set(checkpoint_sources(config)) == set(parameter_shapes(config))
    assert ("lm_head.weight" in parameter_shapes(config)) is not tied


def test_bands_add_up_to_the_packed_parameter():
    for family in TINY:
        config = tiny_config(family)
        shapes = parameter_shapes(config)
        for name, rule in sharding_plan(config, 2).items():
            if isinstance(rule, Bands):
                assert sum(band.size for band in rule.bands) == shapes[name][rule.dim]


def test_local_sizes_agree_with_local_dims():
    config = tiny_config("mamba2", use_bias=True)
    shapes, plan = parameter_shapes(config), sharding_plan(config, 3)
    for rank in range(3):
        dims = LocalDims.of(config, TensorParallel(rank, 3))
        bands = dims.d_inner_local + dims.conv_dim_local + dims.n_heads_local
        for name, expected in (
            ("layers.0.mixer.conv.weight", (config.d_conv, dims.conv_dim_local)),
            ("layers.0.mixer.in_proj.bias", (bands,)),
        ):
            assert local_shape(plan[name], shapes[name], rank) == expected


def test_too_many_ranks_are_refused():
    with pytest.raises(ValueError, match=r"tp=9 .* 8 SSM heads.*valid tp: 1 to 8"):
        sharding_plan(tiny_config("mamba2"), 9)
