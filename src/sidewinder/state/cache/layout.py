"""Which part of a whole model's state a rank holds: the sharding plan's rules, for states."""

from dataclasses import replace

from sidewinder.config import ModelConfig
from sidewinder.sharding.dims import attention_shares
from sidewinder.sharding.plan import sharding_plan
from sidewinder.sharding.slicing import Bands, Rule, Split


def state_rules(config: ModelConfig, size: int) -> dict[str, Split | Bands]:
    """The rule of every tensor of a stored state (see `formats`) for a group of `size` ranks.

    The convolution's state is split like its weight, the SSM state like the skip weights `D`
    (Mamba-1 kinds, `[n_layers, N, d_inner]`) or like the heads (Mamba-2,
    `[n_layers, heads, N, head_dim]`), keys and values (`[n_invocations, tokens, heads, head_dim]`)
    by key-value head.
    """
    plan = sharding_plan(config, size)
    mixer = f"layers.{config.mixer_layers[0]}.mixer"
    conv = _along(plan[f"{mixer}.conv.weight"], 2)
    ssm = _along(plan[f"{mixer}.D"], 1 if config.is_mamba2 else 2)
    rules = {"conv": conv, "ssm": ssm, "ssm_scale": ssm}
    if config.attention is not None:
        kv_heads, _ = attention_shares(config.attention, size)
        heads = Split(2, "key-value head", kv_heads)
        rules |= {"k": heads, "v": heads}
    return rules


def _along(rule: Rule, dim: int) -> Split | Bands:
    assert isinstance(rule, Split | Bands), "states are split, never replicated"
    return replace(rule, dim=dim)
