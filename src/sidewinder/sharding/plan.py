"""The sharding plan: for every parameter of a model, its global shape and how it is split.

The tables below are the definition; docs/sharding.md explains them. Nothing falls through to
"replicate": a parameter that is not listed here does not exist.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig, ExpertsConfig
from sidewinder.sharding.dims import attention_shares, channel_shares, check_tp, group_shares
from sidewinder.sharding.shares import Share, split_channels, split_units
from sidewinder.sharding.slicing import Band, Bands, Replicate, Rule, Split

Entry = tuple[str, tuple[int, ...], Rule]
"""A parameter's name, global shape and rule."""

FLOAT32_SUFFIXES = (
    *(".A_log", ".D", ".dt_proj.bias", ".dt_bias"),
    *(".router.weight", ".router.bias"),
)
"""Parameters that stay float32 whatever the weights are: they steer the recurrence's decay, or
choose experts."""


ONE_OF_EXPERTS = re.compile(r"\.experts\.\d+\.")


def is_float32(name: str) -> bool:
    """Whether parameter `name` is kept in float32 in every model."""
    return name.endswith(FLOAT32_SUFFIXES)


def passes(config: ModelConfig, name: str) -> Fraction | int:
    """How often a token passes parameter `name`: as often as blocks are called; on average, of
    experts. Of the embedding, where it is not the head, a token reads one row."""
    if name == "embedding.weight" and not config.tie_embeddings:
        return 0
    if config.experts is not None and ONE_OF_EXPERTS.search(name):
        return Fraction(config.experts.router.n_chosen, config.experts.n_experts)
    blocks = config.attention.blocks if config.attention is not None else {}
    return next(
        (len(layers) for block, layers in blocks.items() if name.startswith(f"{block}.")), 1
    )


def sharding_plan(config: ModelConfig, size: int) -> dict[str, Rule]:
    """The rule of every parameter for a group of `size` ranks.

    Raises:
        ValueError: if the model cannot be split over `size` ranks; names the sizes that work.
    """
    check_tp(config, size)
    return {name: rule for name, _, rule in _entries(config, size)}


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The global shape of every parameter, in our layout (docs/architecture.md)."""
    return {name: shape for name, shape, _ in _entries(config, 1)}


def _entries(config: ModelConfig, size: int) -> Iterator[Entry]:
    whole = Replicate()
    rows = Split(0, "row", split_units(config.vocab_size, size))
    table = (config.vocab_size, config.d_model)
    yield "embedding.weight", table, rows
    if not config.tie_embeddings:
        yield "lm_head.weight", table, rows
    yield "final_norm.weight", (config.d_model,), whole
    for layer in range(config.n_layers):
        for name, shape, rule in _layer(config, layer, size):
            yield f"layers.{layer}.{name}", shape, rule
    if config.attention is not None and config.attention.shared:
        for layer in config.attention.layers:
            # It follows the sum of the block's MLP, so every rank needs all of its output anyway.
            yield f"layers.{layer}.linear.weight", (config.d_model, config.d_model), whole
            for name, shape, rule in _adapters(config, config.attention, size):
                yield f"layers.{layer}.adapter.{name}", shape, rule
        for block in config.attention.blocks:
            for name, shape, rule in _shared_block(config, config.attention, size):
                yield f"{block}.{name}", shape, rule


def _layer(config: ModelConfig, layer: int, size: int) -> Iterator[Entry]:
    """Norm and mixer, attention (or both side by side), MLP or experts; where these follow in every
    layer, a norm before them."""
    attention, mlp, experts = config.attention, config.mlp, config.experts
    yield "norm.weight", (config.d_model,), Replicate()
    if layer in config.mixer_layers:
        mixer = _mamba2_mixer if config.is_mamba2 else _mamba1_mixer
        for name, shape, rule in mixer(config, size):
            yield f"mixer.{name}", shape, rule
    if layer in config.attention_layers and attention is not None:
        yield from _attention(config, attention, config.d_model, size)
    has_mlp, has_experts = layer in config.mlp_layers, layer in config.expert_layers
    if (has_mlp or has_experts) and not config.single_parts:
        yield "pre_ff_norm.weight", (config.d_model,), Replicate()
    if has_mlp and mlp is not None:
        yield from _mlp(config.d_model, "mlp", mlp.d_ff, mlp.gated, mlp.use_bias, size)
    if has_experts and experts is not None:
        yield from _experts(config, experts, size)


def _mamba1_mixer(config: ModelConfig, size: int) -> Iterator[Entry]:
    """Mamba, Falcon-Mamba, Zamba, Jamba: everything follows the channels, but for norms on what all
    of a head's channels share."""
    d_inner, d_model, n = config.d_inner, config.d_model, config.d_state
    shares = channel_shares(config, size)
    rows, columns = Split(0, "channel", shares), Split(1, "channel", shares)
    x_z = Bands(0, tuple(Band(name, "channel", d_inner, shares) for name in ("x", "z")))
    yield "in_proj.weight", (2 * d_inner, d_model), x_z
    if config.use_bias:
        yield "in_proj.bias", (2 * d_inner,), x_z
    yield "conv.weight", (config.d_conv, d_inner), columns
    if config.use_conv_bias:
        yield "conv.bias", (d_inner,), rows
    yield "x_proj.weight", (config.dt_rank + 2 * n, d_inner), columns
    if config.mixer_norm_weights:
        for name, width in (("dt", config.dt_rank), ("B", n), ("C", n)):
            yield f"{name}_norm.weight", (width,), Replicate()
    yield "dt_proj.weight", (d_inner, config.dt_rank), rows
    yield "dt_proj.bias", (d_inner,), rows
    yield "A_log", (n, d_inner), columns
    yield "D", (d_inner,), rows
    yield "out_proj.weight", (d_model, d_inner), columns
    if config.use_bias:
        yield "out_proj.bias", (d_model,), Replicate()


def _mamba2_mixer(config: ModelConfig, size: int) -> Iterator[Entry]:
    """Mamba-2: heads split; a rank keeps the groups of B and C that its heads use."""
    d_inner, d_model, n_heads = config.d_inner, config.d_model, config.n_heads
    channels = channel_shares(config, size)
    groups = tuple(
        Share(share.start * config.d_state, share.stop * config.d_state)
        for share in group_shares(config, size)
    )
    x = Band("x", "head", d_inner, channels)
    b, c = (Band(name, "group", config.n_groups * config.d_state, groups) for name in ("B", "C"))
    heads = split_units(n_heads, size)
    in_proj = Bands(
        0, (Band("z", "head", d_inner, channels), x, b, c, Band("dt", "head", n_heads, heads))
    )
    conv_dim = d_inner + b.size + c.size
    by_head = Split(0, "head", heads)
    yield "in_proj.weight", (conv_dim + d_inner + n_heads, d_model), in_proj
    if config.use_bias:
        yield "in_proj.bias", (conv_dim + d_inner + n_heads,), in_proj
    yield "conv.weight", (config.d_conv, conv_dim), Bands(1, (x, b, c))
    if config.use_conv_bias:
        yield "conv.bias", (conv_dim,), Bands(0, (x, b, c))
    for name in ("A_log", "D", "dt_bias"):
        yield name, (n_heads,), by_head
    if config.gated_norm:
        yield "norm.weight", (d_inner,), Split(0, "head", channels)
    yield "out_proj.weight", (d_model, d_inner), Split(1, "head", channels)
    if config.use_bias:
        yield "out_proj.bias", (d_model,), Replicate()


def _shared_block(config: ModelConfig, attention: AttentionConfig, size: int) -> Iterator[Entry]:
    """Zamba's shared block: it sees the residual stream and the embedding side by side."""
    assert config.mlp is not None, "a shared block has an MLP"
    wide = 2 * config.d_model
    yield "input_norm.weight", (wide,), Replicate()
    yield "pre_ff_norm.weight", (config.d_model,), Replicate()
    yield from _attention(config, attention, wide, size)
    mlp = config.mlp
    yield from _mlp(config.d_model, "mlp", mlp.d_ff, mlp.gated, mlp.use_bias, size)


def _adapters(config: ModelConfig, attention: AttentionConfig, size: int) -> Iterator[Entry]:
    """What one call of Zamba2's shared block adds to its projections, `B (A x)`.

    A is small and whole on every rank, B is split as the projection is: nothing more to sum.
    """
    assert config.mlp is not None, "a shared block has an MLP"
    if rank := attention.adapter_rank:
        for name, shape, rule in _attention(config, attention, 2 * config.d_model, size):
            if name.endswith(("q.weight", "k.weight", "v.weight")):
                projection = name.removeprefix("attention.").removesuffix(".weight")
                yield f"{projection}.A.weight", (rank, shape[1]), Replicate()
                yield f"{projection}.B.weight", (shape[0], rank), rule
    if rank := config.mlp.adapter_rank:
        d_ff = config.mlp.d_ff
        shares = split_channels(d_ff, size)
        bands = tuple(Band(name, "channel", d_ff, shares) for name in ("gate", "up"))
        yield "gate_up.A.weight", (rank, config.d_model), Replicate()
        yield "gate_up.B.weight", (2 * d_ff, rank), Bands(0, bands)


def _attention(
    config: ModelConfig, attention: AttentionConfig, d_input: int, size: int
) -> Iterator[Entry]:
    """Key-value heads with their queries; ranks that share one each have its keys and values."""
    kv, queries = (
        tuple(Share(own.start * attention.head_dim, own.stop * attention.head_dim) for own in each)
        for each in attention_shares(attention, size)
    )
    by_query, by_kv = Split(0, "query head", queries), Split(0, "key-value head", kv)
    for name, heads, rule in (
        ("q", attention.n_heads, by_query),
        ("k", attention.n_kv_heads, by_kv),
        ("v", attention.n_kv_heads, by_kv),
    ):
        outputs = heads * attention.head_dim
        yield f"attention.{name}.weight", (outputs, d_input), rule
        if attention.use_bias:
            yield f"attention.{name}.bias", (outputs,), rule
    inner = attention.n_heads * attention.head_dim
    yield "attention.o.weight", (config.d_model, inner), Split(1, "query head", queries)
    if attention.use_bias:
        yield "attention.o.bias", (config.d_model,), Replicate()


def _mlp(
    width: int, name: str, d_ff: int, gated: bool, use_bias: bool, size: int
) -> Iterator[Entry]:
    """By channel of the inner width, of a stream of `width` channels."""
    shares = split_channels(d_ff, size)
    rows = Split(0, "channel", shares)
    for part in ("gate", "up") if gated else ("up",):
        yield f"{name}.{part}.weight", (d_ff, width), rows
        if use_bias:
            yield f"{name}.{part}.bias", (d_ff,), rows
    yield f"{name}.down.weight", (width, d_ff), Split(1, "channel", shares)
    if use_bias:
        yield f"{name}.down.bias", (width,), Replicate()


def _experts(config: ModelConfig, experts: ExpertsConfig, size: int) -> Iterator[Entry]:
    """Every rank has its channels of every expert, and the whole router: all choose alike."""
    yield "experts.router.weight", (experts.n_experts, config.d_model), Replicate()
    if experts.router.has_bias:
        yield "experts.router.bias", (experts.n_experts,), Replicate()
    width = experts.d_latent or config.d_model
    if experts.d_latent:
        # Whole on every rank: all experts read all of the latent, and what a rank's channels write
        # is a term of it that goes through the way back before the layer's one sum.
        for name, shape in (
            ("to_latent", (width, config.d_model)),
            ("from_latent", (config.d_model, width)),
        ):
            yield f"experts.{name}.weight", shape, Replicate()
            if experts.latent_bias:
                yield f"experts.{name}.bias", shape[:1], Replicate()
    for number in range(experts.n_experts):
        yield from _mlp(width, f"experts.{number}", experts.d_ff, experts.gated, False, size)
    if experts.shared_d_ff:
        shared, bias = experts.shared_d_ff, experts.shared_bias
        yield from _mlp(config.d_model, "experts.shared", shared, experts.gated, bias, size)
