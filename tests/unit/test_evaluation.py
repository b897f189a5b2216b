"""Models beside the exact one: the same figures as logits of whole models, window by window."""

import pytest
import torch

from sidewinder.agreement import AgreementMeter
from sidewinder.checkpoint.reader import load_shard
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import policy_of
from sidewinder.config import EngineConfig, load_model_config
from sidewinder.evaluation import Comparer, compare_policies, windows
from sidewinder.models.registry import build_model
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import run_ranks, save_tiny

TOKENS = torch.randint(0, 90, (75,), generator=torch.Generator().manual_seed(0)).tolist()
WINDOW = 32


def logits(folder, config, policy):
    """Of every window, at tp=2, from models built for it."""

    def rank(tp, c):
        weights = load_shard(folder, config, tp, torch.float32)
        model = build_model(config, tp, weights, QuantisedCollectives(c, policy))
        found = []
        for tokens in windows(TOKENS, WINDOW):
            pool = StatePool(config, LocalDims.of(config, tp), 1, torch.float32, n_pages=2)
            table = [[0, 1]] if config.attention else None
            batch = pack([tokens], [0], page_tables=table)
            found.append(model.logits(model.forward(batch, pool)))
        return found

    return run_ranks(2, rank)[0]


@pytest.mark.parametrize(
    "family",
    [
        "mamba",
        "mamba2",
        "zamba",
        "zamba2",
        "bamba",
        "granitemoehybrid",
        "nemotron_h",
        "falcon_h1",
        "jamba_experts",
    ],
)
def test_one_model_with_switched_sums_is_as_many_models(family, tmp_path):
    folder = save_tiny(family, tmp_path)
    config = load_model_config(folder)
    policies = [policy_of(name) for name in ("int4", "exact", "int8")]
    engine = EngineConfig(str(folder), tp=2, device="cpu", dtype="float32")

    def rank(tp, c):
        comparer = Comparer(engine, config, tp, c)
        comparer.start([policy.to_json() for policy in policies], WINDOW, same_weights=False)
        for tokens in windows(TOKENS, WINDOW):
            comparer.run(tokens)
        return comparer.result()

    found, others = run_ranks(2, rank)
    assert others == []
    exact = logits(folder, config, policies[1])
    for policy, agreement in zip(policies, found, strict=True):
        meter = AgreementMeter()
        own = logits(folder, config, policy)
        for tokens, expected, rows in zip(windows(TOKENS, WINDOW), exact, own, strict=True):
            meter.add(expected[:-1], rows[:-1], torch.tensor(tokens[1:]))
        assert agreement == meter.result()
    assert found[0].mean_kl > found[2].mean_kl > found[1].mean_kl == 0


def test_windows_leave_out_a_token_that_predicts_nothing():
    assert [len(part) for part in windows(range(75), 32)] == [32, 32, 11]
    assert [len(part) for part in windows(range(65), 32)] == [32, 32]


def test_rotation_is_compared_with_the_plain_model(tmp_path):
    folder = save_tiny("falcon_mamba", tmp_path)
    config = load_model_config(folder)
    options = {"device": "cpu", "threads": 1, "dtype": "bfloat16", "rotate": True}
    engine = EngineConfig(str(folder), **options)
    [found] = compare_policies(engine, config, [policy_of("exact")], TOKENS, WINDOW)
    assert 0 < found.mean_kl < 0.01
    [same] = compare_policies(engine, config, [policy_of("exact")], TOKENS, WINDOW, True)
    assert same.mean_kl == 0


def test_a_window_of_one_token_is_refused(tmp_path):
    engine = EngineConfig(str(tmp_path))
    with pytest.raises(ValueError, match="two tokens or more"):
        compare_policies(engine, None, [policy_of("exact")], TOKENS, 1)
