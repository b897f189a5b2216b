"""What the stored names of several families have in common (`names.py`, `zamba_names.py`)."""

from sidewinder.checkpoint.layouts import Convolution, Layout, Plain
from sidewinder.config import ModelConfig

_COLUMN_SPLIT = ("x_proj.weight", "out_proj.weight", "attention.o.weight", "down.weight")


def plain(name: str) -> Plain:
    """Stored as ours; ranges run along the dimension in which the plan splits it."""
    return Plain(1 if name.endswith(_COLUMN_SPLIT) else 0)


def top_keys(config: ModelConfig, embedding: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Of embedding and head; a tied head may be stored again, or be the only copy."""
    head = ("lm_head.weight",)
    return {
        "embedding.weight": embedding + head if config.tie_embeddings else embedding,
        "lm_head.weight": head,
    }


BLOCK = {
    "input_norm": "input_layernorm",
    "pre_ff_norm": "pre_ff_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.gate": "feed_forward.gate_proj",
    "mlp.up": "feed_forward.up_proj",
    "mlp.down": "feed_forward.down_proj",
}
"""Attention, MLP and their norms in Zamba's shared block and Bamba's layers."""


def mamba2_mixer(part: str) -> tuple[str, Layout]:
    """A parameter of a Mamba-2 mixer, of which only the convolution has another name."""
    if part == "conv.weight":
        return "conv1d.weight", Convolution()
    return part.replace("conv.", "conv1d."), plain(part)
