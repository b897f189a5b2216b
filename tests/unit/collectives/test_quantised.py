"""Quantised sums of deltas: accuracy, the same bits on all ranks, rows that do not mix."""

import json

import pytest
import torch

from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives, quantised
from sidewinder.collectives.quantised.policy import PhaseCodecs, Policy, delta_sites, policy_of
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.ops.codec import CODECS
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.testing import run_ranks, tiny_config

QUANTISED = ("int8", "int6", "int4")
FLOOR_DB = {"int8": 40.3, "int6": 29.9, "int4": 17.8}
SITE = "layers.0.mixer.out_proj"


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sums(parts, policy, n_decodes=0):
    """Every rank's quantised sum of `parts` `[ranks, rows, width]`."""

    def rank(tp, c):
        mine = parts[tp.rank].clone()
        return QuantisedCollectives(c, policy).all_reduce_delta(mine, SITE, n_decodes)

    return run_ranks(len(parts), rank)


def sqnr_db(reference, result):
    noise = (reference.double() - result.double()).square().sum()
    return float(10 * (reference.double().square().sum() / noise).log10())


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", QUANTISED)
def test_sums_are_close_and_the_same_bits_on_every_rank(name, dtype, ranks):
    parts = gaussian(ranks, 37, 768).to(dtype)
    results = sums(parts, policy_of(name))
    exact = parts.double().sum(0)
    assert sqnr_db(exact, results[0]) >= FLOOR_DB[name]
    for start in range(0, 768, 96):
        tile = slice(start, start + 96)
        assert sqnr_db(exact[:, tile], results[0][:, tile]) >= FLOOR_DB[name] - 1
    for other in results:
        assert other.dtype == dtype
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("name", QUANTISED)
def test_two_ranks_round_once(name):
    parts = gaussian(2, 64, 768)
    assert sqnr_db(parts.double().sum(0), sums(parts, policy_of(name))[0]) >= FLOOR_DB[name] + 2.5


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (1, 128), (1, 129), (3, 33), (5, 385)], ids=str)
def test_odd_shapes_and_single_rows(shape, ranks):
    parts = gaussian(ranks, *shape)
    for name in QUANTISED:
        whole = sums(parts, policy_of(name))
        assert all(torch.equal(whole[0], other) for other in whole)
        for row in range(shape[0]):
            alone = sums(parts[:, row : row + 1], policy_of(name))[0]
            assert torch.equal(alone[0], whole[0][row])


@pytest.mark.parametrize("ranks", [2, 3])
def test_no_rows_is_no_message(ranks):
    assert sums(torch.empty(ranks, 0, 64), policy_of("int8"))[0].shape == (0, 64)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("decodes", ["int4", "exact"])
def test_a_sum_may_come_normed_with_the_bits_of_one_after_the_other(decodes, ranks):
    parts, residual = gaussian(ranks, 9, 384).bfloat16(), gaussian(9, 384, seed=1)
    weight = gaussian(384, seed=2).bfloat16()
    policy = Policy(PhaseCodecs(CODECS["int4"], policy_of(decodes).default.decode), {})

    def rank(tp, c):
        group = QuantisedCollectives(c, policy)
        pending = group.start_all_reduce_delta(parts[tp.rank].clone(), SITE, 2)
        pending.advance()
        return pending.normed(weight, 1e-5, residual)

    delta = sums(parts, policy, n_decodes=2)[0]
    expected = rms_norm(delta, weight, 1e-5, residual)
    for found in run_ranks(ranks, rank):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_what_one_rank_has_not_finite_no_rank_gets_finite(ranks):
    for bad in (torch.nan, torch.inf):
        parts = gaussian(ranks, 3, 256)
        parts[1, 1, 200] = bad
        for result in sums(parts, policy_of("int4")):
            assert not result[1, 200].isfinite()
            assert result[[0, 2]].isfinite().all()


@pytest.mark.parametrize("ranks", [2, 4])
def test_phases_have_their_own_codecs(ranks):
    parts = gaussian(ranks, 9, 256)
    policy = Policy(PhaseCodecs(prefill=CODECS["int4"], decode=None), {})
    mixed = sums(parts, policy, n_decodes=4)
    assert all(torch.equal(mixed[0], other) for other in mixed)
    assert torch.equal(mixed[0][:4], sum_in_rank_order(parts)[:4])
    assert torch.equal(mixed[0][4:], sums(parts, policy_of("int4"))[0][4:])
    assert torch.equal(sums(parts, policy, n_decodes=9)[0], sum_in_rank_order(parts))


@pytest.mark.parametrize("ranks", [2, 3])
def test_everything_but_deltas_is_exact(ranks):
    parts = gaussian(ranks, 4, 64)

    def rank(tp, c):
        c = QuantisedCollectives(c, policy_of("int4"))
        group = c.subgroup([list(range(tp.size))])
        assert group.is_exact(SITE)
        assert not c.is_exact(SITE)
        c.barrier()
        assert c.broadcast(torch.tensor([tp.rank]), 1).item() == 1
        rows = c.all_to_all(torch.tensor([[10 * tp.rank + to] for to in range(tp.size)]))
        assert rows.flatten().tolist() == [10 * source + tp.rank for source in range(tp.size)]
        assert c.all_gather(parts[tp.rank], [64] * tp.size).shape == (4, 64 * tp.size)
        return c.all_reduce(parts[tp.rank].clone()), group.all_reduce(parts[tp.rank].clone())

    for total, of_group in run_ranks(ranks, rank):
        assert torch.equal(total, sum_in_rank_order(parts))
        assert torch.equal(of_group, sum_in_rank_order(parts))


def test_repeats_are_deterministic():
    parts = gaussian(3, 5, 300)
    first = sums(parts, policy_of("int6"))[0]

    def rank(tp, c):
        c = QuantisedCollectives(c, policy_of("int6"))
        return [c.all_reduce_delta(parts[tp.rank].clone(), SITE, 0) for _ in range(100)]

    for results in run_ranks(3, rank):
        assert all(torch.equal(first, result) for result in results)


def test_a_policy_that_quantises_nothing_leaves_the_transport_as_it_is():
    config = tiny_config("mamba")

    def rank(_, c):
        return [quantised(c, policy_of(name), config) is c for name in ("auto", "exact", "int8")]

    assert run_ranks(2, rank) == [[True, True, False]] * 2
    assert run_ranks(1, rank) == [[True, True, True]]


def test_the_path_says_what_is_quantised(tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"default": "int8", "sites": {"layers.2.mixer.out_proj": "exact"}}))
    config = tiny_config("mamba")

    def path_of(_, c):
        return [quantised(c, policy_of(a), config).path for a in ("int4", str(file))]

    paths = run_ranks(2, path_of)
    assert paths[0] == ["threads; deltas int4", "threads; deltas int8 but for 1 sites"]


def test_a_policy_file_sets_sites_and_phases(tmp_path):
    file = tmp_path / "policy.json"
    sites = {SITE: "exact", "layers.1.mixer.out_proj": {"prefill": "int4"}}
    file.write_text(json.dumps({"default": "int8", "sites": sites}))
    policy = policy_of(str(file))
    assert policy.at(SITE) == PhaseCodecs()
    assert policy.at("layers.1.mixer.out_proj") == PhaseCodecs(prefill=CODECS["int4"])
    assert policy.at("layers.2.mixer.out_proj") == PhaseCodecs(CODECS["int8"], CODECS["int8"])
    assert not policy.is_exact


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a readable policy"),
        ("[]", "an object with 'default' and 'sites'"),
        ('{"layers": {}}', "an object with 'default' and 'sites'"),
        ('{"sites": []}', "'sites' is an object"),
        ('{"default": "int3"}', "default: 'int3' is not a codec; use exact, bf16, int8"),
        ('{"default": 8}', "default: 8 is not a codec"),
        ('{"sites": {"a": {"train": "int8"}}}', "a: phases are prefill and decode, not train"),
        ('{"sites": {"a": {"decode": "int1"}}}', "a: 'int1' is not a codec"),
    ],
)
def test_broken_policy_files_are_refused(tmp_path, text, words):
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        policy_of(str(file))


def test_an_absent_policy_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a readable policy"):
        policy_of(str(tmp_path / "absent.json"))


def test_a_policy_of_another_model_is_refused(tmp_path):
    file = tmp_path / "policy.json"
    file.write_text('{"sites": {"layers.9.mixer.out_proj": "int8"}}')
    with pytest.raises(ValueError, match=r"layers\.9\.mixer\.out_proj.*does not have.*layers\.0"):
        policy_of(str(file)).check_sites(tiny_config("mamba"))


def test_sites_of_a_hybrid_include_the_shared_block():
    assert len(delta_sites(tiny_config("mamba"))) == 3
    assert delta_sites(tiny_config("zamba"))[-3:] == (
        "layers.5.mixer.out_proj",
        "shared.attention.o",
        "shared.mlp.down",
    )
