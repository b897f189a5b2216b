"""From `config.json` to a `ModelConfig`, for Nemotron-H: every layer is a Mamba-2 mixer, attention,
an MLP or experts.

Read by nothing in transformers, and so not here: `attention_bias` (there is none), `expand`,
`mamba_proj_bias`, `n_shared_experts`, `residual_in_fp32`, `sliding_window`, `time_step_limit`. Nor
is what only initial weights, training or generation need.
"""

import math
from collections.abc import Sequence

from sidewinder.activations import SILU_IN_CHECKPOINTS, SQUARED_RELU
from sidewinder.checkpoint.config_values import MOST_EXPERTS, ConfigValues
from sidewinder.checkpoint.mamba2_hybrids import ATTENTION_NAMES, MIXER_NAMES, chosen_experts
from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig, ExpertsConfig, MLPConfig, RouterConfig

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Kinds of layers in `hybrid_override_pattern`."""

KINDS = {
    **dict.fromkeys(MIXER_NAMES, "mamba"),
    **dict.fromkeys(ATTENTION_NAMES, "attention"),
    "mlp": "mlp",
    "moe": "moe",
}
"""The same in `layers_block_type` or `layer_types`, in older and newer files."""

OLDER_NAMES = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "time_step_min": "mamba_dt_min",
    "use_conv_bias": "mamba_conv_bias",
    "n_routed_experts": "num_local_experts",
}
"""What keys were or may also be called; that name goes first, as in transformers."""

KV_HEADS = 8
"""Where a file does not say; `num_key_value_heads: null` is one for each query head, though."""


def nemotron_h(values: ConfigValues) -> ModelConfig:
    """Nemotron-H."""
    if predicted := values.size("num_nextn_predict_layers", 0, minimum=0):
        raise values.error(
            f"num_nextn_predict_layers={predicted} (multi-token prediction) is not supported; only "
            "models with num_nextn_predict_layers=0 are"
        )
    values.choice("mamba_hidden_act", "silu", SILU_IN_CHECKPOINTS)
    kinds = _kinds(values)
    n_heads = values.size("mamba_num_heads", 128)
    groups, bias = _name(values, "n_groups"), values.flag("use_bias", False)
    least_dt = values.non_negative(_name(values, "time_step_min"), 0.001)
    return ModelConfig(
        family="nemotron_h",
        layout="transformers",
        vocab_size=values.size("vocab_size", 131072),
        d_model=values.size("hidden_size", 4096),
        n_layers=len(kinds),
        d_inner=n_heads * values.size("mamba_head_dim", 64),
        d_state=values.size("ssm_state_size", 128),
        d_conv=values.size(_name(values, "conv_kernel"), 4, minimum=2),
        dt_rank=0,
        n_heads=n_heads,
        n_groups=values.divisor(groups, 8, "mamba_num_heads", n_heads),
        norm_eps=values.positive("layer_norm_epsilon", 1e-5),
        mixer_norm_eps=None,
        use_bias=bias,
        use_conv_bias=values.flag(_name(values, "use_conv_bias"), True),
        gated_norm=True,
        norm_before_gate=False,
        time_step_limit=(least_dt, math.inf),
        residual_in_fp32=False,
        tie_embeddings=values.flag("tie_word_embeddings", False),
        dtype=values.dtype(),
        eos_token_ids=values.tokens("eos_token_id", 2),
        attention=_attention(values, _of_kind(kinds, "attention")),
        mlp=_mlp(values, _of_kind(kinds, "mlp")),
        experts=_experts(values, _of_kind(kinds, "moe")),
        single_parts=True,
    )


def _name(values: ConfigValues, name: str) -> str:
    """What the file calls the key `name`."""
    return OLDER_NAMES[name] if OLDER_NAMES[name] in values else name


def _of_kind(kinds: Sequence[str], wanted: str) -> tuple[int, ...]:
    return tuple(layer for layer, kind in enumerate(kinds) if kind == wanted)


def _attention(values: ConfigValues, layers: tuple[int, ...]) -> AttentionConfig | None:
    """Without positions and without biases. None where no layer attends."""
    if not layers:
        return None
    n_heads = values.size("num_attention_heads", 32)
    default = n_heads if "num_key_value_heads" in values else KV_HEADS
    head_dim = values.size("head_dim", 128)
    return AttentionConfig(
        layers=layers,
        n_heads=n_heads,
        n_kv_heads=values.divisor("num_key_value_heads", default, "num_attention_heads", n_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
    )


def _mlp(values: ConfigValues, layers: tuple[int, ...]) -> MLPConfig | None:
    if not layers:
        return None
    return MLPConfig(
        d_ff=values.size("intermediate_size", 21504),
        activation=_activation(values),
        use_bias=values.flag("mlp_bias", False),
        gated=False,
        layers=layers,
    )


def _activation(values: ConfigValues) -> str:
    return values.choice("mlp_hidden_act", SQUARED_RELU, (SQUARED_RELU,))


def _experts(values: ConfigValues, layers: tuple[int, ...]) -> ExpertsConfig | None:
    """Without a gate, as the MLPs, maybe of a narrower stream; one more beside them, which every
    token has."""
    if not layers:
        return None
    has_latent = values.get("moe_latent_size") is not None
    d_latent = values.size("moe_latent_size", 0) if has_latent else 0
    n_experts = values.size(_name(values, "n_routed_experts"), 8, maximum=MOST_EXPERTS)
    return ExpertsConfig(
        layers=layers,
        n_experts=n_experts,
        d_ff=values.size("moe_intermediate_size", 7688),
        router=_router(values, n_experts),
        activation=_activation(values),
        gated=False,
        shared_d_ff=values.size("moe_shared_expert_intermediate_size", 7688),
        shared_bias=values.flag("mlp_bias", False),
        d_latent=d_latent,
        latent_bias=has_latent and values.flag("mlp_bias", False),
    )


def _router(values: ConfigValues, n_experts: int) -> RouterConfig:
    router = RouterConfig(
        n_chosen=chosen_experts(values, n_experts),
        scores="sigmoid",
        has_bias=True,
        normalised=values.flag("norm_topk_prob", True),
        scale=values.positive("routed_scaling_factor", 1.0),
        n_groups=values.divisor("n_group", 1, "n_routed_experts", n_experts),
        n_groups_chosen=values.size("topk_group", 1),
    )
    check_groups(values, router, n_experts, ("n_group", "topk_group", "num_experts_per_tok"))
    return router


def check_groups(
    values: ConfigValues, router: RouterConfig, n_experts: int, keys: tuple[str, str, str]
) -> None:
    """Whether a token finds its experts in the groups that it may choose.

    Args:
        values: for the error.
        router: what they say.
        n_experts: in all groups.
        keys: that count groups, groups of a token and experts of a token.

    Raises:
        ValueError: if not.
    """
    groups, groups_chosen, chosen = keys
    width = n_experts // router.n_groups
    if router.n_groups_chosen > router.n_groups:
        raise values.error(
            f"{groups_chosen}={router.n_groups_chosen} is more than the {router.n_groups} groups"
        )
    if width < 2:
        raise values.error(
            f"{groups}={router.n_groups} leaves groups of {width} experts; 2 are needed"
        )
    if router.n_chosen > router.n_groups_chosen * width:
        raise values.error(
            f"{chosen}={router.n_chosen} is more than the {router.n_groups_chosen * width} experts "
            f"of {groups_chosen}={router.n_groups_chosen} groups"
        )


def _kinds(values: ConfigValues) -> list[str]:
    """The kind of every layer: "mamba", "attention", "mlp" or "moe"."""
    found: list[str] = []
    for name in ("hybrid_override_pattern", "layers_block_type", "layer_types"):
        if values.get(name) is None:
            continue
        kinds = _listed(values, name)
        if found and kinds != found:
            raise values.error(f"{name} lists other layers than the key before it; leave out one")
        found = kinds
    if not found:
        raise values.error(
            "hybrid_override_pattern or layers_block_type must say what each layer is"
        )
    n_layers = values.size("num_hidden_layers", len(found))
    if n_layers != len(found):
        raise values.error(f"{len(found)} layers are listed, and num_hidden_layers={n_layers}")
    if "mamba" not in found:
        raise values.error("no layer has a mixer; a hybrid needs at least one Mamba-2 layer")
    return found


def _listed(values: ConfigValues, name: str) -> list[str]:
    """What one key says."""
    listed = values.get(name)
    is_pattern = name == "hybrid_override_pattern"
    known = LETTERS if is_pattern else KINDS
    right_type = isinstance(listed, str if is_pattern else list) and len(listed) > 0
    if not right_type or any(not isinstance(kind, str) or kind not in known for kind in listed):
        raise values.error(f"{name}={listed!r} may only list {', '.join(known)}, at least one")
    return [known[kind] for kind in listed]
