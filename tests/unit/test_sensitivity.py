"""Costs of quantised sums: the file, what must match it, and the codecs that a budget affords."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sidewinder.collectives.quantised.policy import PhaseCodecs, Policy, delta_calls, policy_of
from sidewinder.config import EngineConfig, load_model_config
from sidewinder.sensitivity import (
    SWEPT,
    Sensitivity,
    choose,
    fingerprint,
    policy_for,
    sensitivity_file,
    sweep,
)
from sidewinder.testing import save_tiny, tiny_config


def sensitivity(config, costs, together=None, floor=0.0, **values):
    """`costs`: KL of each site in int8; int6 costs 4 times, int4 50 times as much."""
    times = dict(zip(SWEPT, (1, 4, 50), strict=True))
    sites = {
        site: {name: floor + cost * times[name] for name in SWEPT}
        for site, cost in zip(delta_calls(config), costs, strict=True)
    }
    total = {name: floor + sum(costs) * times[name] for name in SWEPT}
    fields = {"fingerprint": "f", "tp": 2, "dtype": "float32", "rotate": False, "tokens": 9}
    return Sensitivity(**(fields | values), sites=sites, together=together or total)


def wide(family="mamba", **overrides):
    return replace(tiny_config(family, **overrides), d_model=128)


def names(policy, config):
    return [str(policy.at(site)) for site in delta_calls(config)]


def test_every_site_is_measured_alone_and_all_together():
    config = tiny_config("zamba")
    runs = sweep(config)
    assert len(runs) == len(SWEPT) * (1 + len(delta_calls(config)))
    for codec, site, policy in runs:
        quantised = [name for name in delta_calls(config) if policy.at(name) != PhaseCodecs()]
        assert quantised == (list(delta_calls(config)) if site is None else [site])
        assert {str(policy.at(name)) for name in quantised} == {codec}


def test_costs_leave_out_the_floor_that_every_run_has():
    measured = sensitivity(wide(), [1e-4, 2e-4, 3e-4], floor=1e-3)
    assert measured.floor("int6") == pytest.approx(1e-3)
    assert measured.cost("layers.1.mixer.out_proj", "int6") == pytest.approx(8e-4)
    assert measured.predicted(policy_of("int6")) == pytest.approx(1e-3 + 24e-4)
    assert measured.predicted(policy_of("exact")) == 0


def test_sites_that_cost_more_together_than_alone_are_scaled():
    measured = sensitivity(wide(), [1e-4, 2e-4, 3e-4], dict.fromkeys(SWEPT, 1.0))
    for codec in SWEPT:
        assert measured.predicted(policy_of(codec)) == pytest.approx(1.0)


def test_a_budget_spares_the_sensitive_site():
    config = wide()
    measured = sensitivity(config, [100e-6, 1e-6, 2e-6])
    assert names(choose(measured, config, 1e-9), config) == ["exact"] * 3
    assert names(choose(measured, config, 10e-6), config) == ["exact", "int6", "int8"]
    assert names(choose(measured, config, 200e-6), config) == ["int8", "int4", "int6"]
    assert names(choose(measured, config, 1.0), config) == ["int4"] * 3
    assert names(choose(measured, config, 1.0, ["int8", "int6"]), config) == ["int6"] * 3


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_sends_less_within_the_budget(seed):
    config = wide("zamba")
    generator = torch.Generator().manual_seed(seed)
    costs = (torch.rand(len(delta_calls(config)), generator=generator) ** 4 * 1e-4).tolist()
    measured = sensitivity(config, costs, floor=2e-5)
    budget = 20 * sum(costs) * float(torch.rand(1, generator=generator)) + 3e-5
    found = choose(measured, config, budget)
    assert measured.predicted(found) <= budget
    calls = list(delta_calls(config).values())
    size = {"exact": 256, "int8": 130, "int6": 104, "int4": 72}

    def total(chosen):
        return sum(count * size[name] for count, name in zip(calls, chosen, strict=True))

    alone = list(costs)
    times = {"exact": 0, "int8": 1, "int6": 4, "int4": 50}
    best = min(
        total(chosen)
        for chosen in itertools.product(size, repeat=len(calls))
        if sum(c * times[n] for c, n in zip(alone, chosen, strict=True)) <= 0.99 * (budget - 2e-5)
    )
    assert total(names(found, config)) <= best


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny("mamba", tmp_path_factory.mktemp("model"))


def engine_of(folder, **options):
    return EngineConfig(str(folder), **({"tp": 2, "dtype": "float32"} | options))


def stored(folder, **values):
    config, engine = load_model_config(folder), engine_of(folder)
    matching = {"fingerprint": fingerprint(engine, config)}
    measured = sensitivity(config, [100e-6, 1e-6, 2e-6], **(matching | values))
    measured.write(sensitivity_file(engine))
    return config


def test_the_budget_reads_the_file_beside_the_model(folder):
    config = stored(folder)
    policy = policy_for(engine_of(folder, all_reduce_kl=1.0), config)
    assert names(policy, config) == ["int4"] * 3
    policy = policy_for(engine_of(folder, all_reduce_kl=1.0, all_reduce="int6"), config)
    assert names(policy, config) == ["int6"] * 3
    assert Sensitivity.read(sensitivity_file(engine_of(folder))).tokens == 9


def test_one_rank_needs_no_file(folder):
    engine = engine_of(folder, tp=1, all_reduce_kl=0.1)
    assert policy_for(engine, load_model_config(folder)).is_exact


def test_the_file_may_be_elsewhere(folder, tmp_path):
    config = stored(folder)
    file = sensitivity_file(engine_of(folder)).rename(tmp_path / "costs.json")
    engine = engine_of(folder, all_reduce_kl=1.0, all_reduce=str(file))
    assert names(policy_for(engine, config), config) == ["int4"] * 3
    with pytest.raises(ValueError, match=r"all-reduce-tp2-float32.json, which does not exist"):
        policy_for(engine_of(folder, all_reduce_kl=1.0), config)


@pytest.mark.parametrize(
    "values",
    [{"tp": 4}, {"dtype": "bfloat16"}, {"rotate": True}, {"fingerprint": "0"}],
    ids=str,
)
def test_figures_of_something_else_are_refused(folder, values):
    config = stored(folder, **values)
    [name] = values
    with pytest.raises(ValueError, match=f"measured with {name}=.*measure again"):
        policy_for(engine_of(folder, all_reduce_kl=1.0), config)


def test_a_broken_file_is_refused(folder):
    file = sensitivity_file(engine_of(folder))
    for text, words in (("{", "not a readable"), ("{}", "other fields"), ("[]", "other fields")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            policy_for(engine_of(folder, all_reduce_kl=1.0), load_model_config(folder))


SITE = "layers.1.mixer.out_proj"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("fingerprint", 7, "fingerprint is 7, not a text"),
        ("tp", "2", "tp is '2', not a whole number"),
        ("tp", True, "tp is True, not a whole number"),
        ("dtype", None, "dtype is None, not a text"),
        ("rotate", 0, "rotate is 0, not true or false"),
        ("tokens", 9.5, "tokens is 9.5, not a whole number"),
        ("sites", [SITE], "sites is ['layers.1.mixer.out_proj'], not an object"),
        ("sites", {SITE: 0.5}, f"sites['{SITE}'] is 0.5, not a KL in nats for each of int8, int6"),
        ("sites", {SITE: {"int8": 0.5}}, f"sites['{SITE}'] is {{'int8': 0.5}}, not a KL"),
        ("together", dict.fromkeys(SWEPT, "1"), "together['int8'] is '1', not a finite number"),
        ("together", dict.fromkeys(SWEPT, True), "together['int8'] is True, not a finite"),
        ("together", dict.fromkeys(SWEPT, float("nan")), "together['int8'] is nan, not a finite"),
        ("together", dict.fromkeys(SWEPT, 10**400), "together['int8'] is 1000"),
        ("together", dict.fromkeys([*SWEPT, "int2"], 0), "not a KL in nats for each of int8"),
        ("together", "x" * 10_000, "together is 'xxx"),
    ],
)
def test_a_field_of_another_type_is_named(folder, field, value, words):
    stored(folder)
    file = sensitivity_file(engine_of(folder))
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        policy_for(engine_of(folder, all_reduce_kl=1.0), load_model_config(folder))
    assert str(file) in str(caught.value)
    assert "measure again" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_other_weights_have_another_fingerprint(folder, tmp_path):
    config, engine = load_model_config(folder), engine_of(folder)
    for file in folder.glob("config.json"):
        (tmp_path / file.name).write_text(file.read_text())
    weights = load_file(folder / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    other = engine_of(tmp_path)
    assert fingerprint(other, config) == fingerprint(engine, config)
    weights["backbone.layers.2.mixer.out_proj.weight"][0, 0] += 1
    save_file(weights, tmp_path / "model.safetensors")
    assert fingerprint(other, config) != fingerprint(engine, config)
    assert fingerprint(replace(other, load_format="random"), config) != fingerprint(other, config)


def test_shares_count_calls_of_the_shared_block():
    config = tiny_config("zamba")
    policy = Policy.parse({"default": "int4", "sites": {"shared.attention.o": "exact"}}, "here")
    assert policy.shares(config) == pytest.approx({"int4": 8 / 10, "exact": 2 / 10})
    assert json.loads(json.dumps(policy.to_json())) == policy.to_json()
    assert Policy.parse(policy.to_json(), "again") == policy
