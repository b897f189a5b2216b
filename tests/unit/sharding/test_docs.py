"""The tables of docs/sharding.md say what the plan says."""

import re
from pathlib import Path

from sidewinder.planning import describe_rule
from sidewinder.sharding.plan import sharding_plan
from sidewinder.testing import tiny_config

DOCS = Path(__file__).parents[3] / "docs" / "sharding.md"

MODELS = {
    "## Mamba, Falcon-Mamba": ("mamba", {"use_bias": True}),
    "## Mamba-2": ("mamba2", {"use_bias": True}),
    "## Zamba,": ("zamba", {"mamba_proj_bias": True}),
    "## Zamba2,": (
        "zamba2",
        {"add_bias_linear": True, "use_shared_attention_adapter": True, "num_mem_blocks": 1},
    ),
    "## Bamba, Granite, Nemotron-H and Falcon-H1": (
        "bamba",
        {"mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True},
    ),
    "## Jamba,": ("jamba", {"mamba_proj_bias": True}),
}
BASES = {
    "mamba2": ["mamba"], "zamba": ["mamba"], "bamba": ["mamba2"], "zamba2": ["zamba", "mamba2"],
    "jamba": ["bamba", "mamba"],
}  # fmt: skip
"""Whose rules a family's table leaves out."""


def planned(family, overrides):
    config = tiny_config(family, tie_word_embeddings=False, **overrides)
    return {
        re.sub(r"experts\.\d+", "experts.{e}", re.sub(r"layers\.\d+", "layers.{i}", name)): (
            describe_rule(rule)
        )
        for name, rule in sharding_plan(config, 2).items()
    }


def documented():
    """The rule table of each family's section."""
    sections = re.split(r"^(?=## )", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for heading, model in MODELS.items():
        section = next(part for part in sections if part.startswith(heading))
        yield model, dict(re.findall(r"^\| `([^`|]+)` \| ([^|]+) \|$", section, re.MULTILINE))


def test_granite_is_split_like_bamba():
    """Whose table stands for both."""
    biases = {"mamba_proj_bias": True, "attention_bias": True}
    assert planned("granitemoehybrid", biases) == planned("bamba", biases)


def test_what_nemotron_has_is_split_like_bamba():
    biases = {"mamba_proj_bias": True, "mlp_bias": True}
    ours = planned("nemotron_h", {"use_bias": True, "mlp_bias": True})
    assert ours.items() <= planned("bamba", biases).items()
    assert {"layers.{i}.mixer.in_proj.bias", "layers.{i}.mlp.down.bias"} < ours.keys()
    assert not any("gate" in name or "pre_ff_norm" in name for name in ours)


EXPERTS = [
    ("granite_experts", {}),
    ("nemotron_experts", {"mlp_bias": True, "moe_latent_size": 12}),
    ("jamba_experts", {}),
]


def test_the_table_of_experts_is_the_plan_of_all():
    text = DOCS.read_text(encoding="utf-8").split("## Experts")[1].split("## ")[0]
    table = dict(re.findall(r"^\| `([^`|]+)` \| ([^|]+) \|$", text, re.MULTILINE))
    found = {}
    for family, overrides in EXPERTS:
        rules = planned(family, overrides)
        found |= {name: rule for name, rule in rules.items() if ".experts." in name}
    assert table == found


def test_falcon_h1_is_split_like_bamba():
    """With mixer and attention in every layer, and a gated norm only where the model has one."""
    biases = {"mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True}
    ours = planned("falcon_h1", biases | {"projectors_bias": True, "mamba_rms_norm": True})
    assert ours == planned("bamba", biases)
    assert "layers.{i}.mixer.norm.weight" not in planned("falcon_h1", {})


def test_all_of_zamba2_s_blocks_are_split_alike():
    one, several = (planned("zamba2", {"num_mem_blocks": n}) for n in (1, 2))
    for block in ("shared.0", "shared.1"):
        for name, rule in one.items():
            assert several[name.replace("shared", block)] == rule


def test_tables_are_the_plan():
    plans = {}
    for (family, overrides), table in documented():
        rules = plans[family] = planned(family, overrides)
        base = {name: rule for of in BASES.get(family, []) for name, rule in plans[of].items()}
        different = {name: rule for name, rule in rules.items() if base.get(name) != rule}
        assert table == different, family
