"""Quantised sums between real ranks, over every transport."""

import json

import pytest
import torch
from rank_toys import part

from sidewinder.cli import main
from sidewinder.cli.main import DONE
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import policy_of
from sidewinder.collectives.shared_memory import native
from sidewinder.llm import LLM
from sidewinder.testing import relative_error, run_ranks, save_tiny, save_tokenizer

SITE = "layers.0.mixer.out_proj"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_transport_gives_the_bits_of_threads(pool, size, transport):
    for seed, shape in enumerate([(1, 40), (3, 129), (33, 512)]):
        for dtype in (torch.float32, torch.bfloat16):
            for name in ("int8", "int6", "int4"):

                def rank(tp, c, shape=shape, dtype=dtype, seed=seed, name=name):
                    mine = part(tp.rank, shape, dtype, seed)
                    return QuantisedCollectives(c, policy_of(name)).all_reduce_delta(mine, SITE, 0)

                expected = run_ranks(size, rank)[0]
                ranks = pool(size, transport)
                assert ranks.call("check_delta", shape, dtype, seed, name, expected)


@pytest.mark.parametrize(("size", "calls"), [(2, 20_000), (3, 5_000), (4, 5_000)])
@pytest.mark.parametrize("path", ["shared memory", "tcp"])
@pytest.mark.skipif(native is None, reason="native module not built")
def test_many_calls_of_alternating_shapes_and_codecs(pool, path, size, calls):
    cases = []
    for seed, shape in enumerate([(1, 40), (2, 129), (9, 385), (16, 768)]):
        for name in ("int8", "int6", "int4"):
            dtype = torch.float32 if seed % 2 else torch.bfloat16

            def rank(tp, c, shape=shape, dtype=dtype, seed=seed, name=name):
                mine = part(tp.rank, shape, dtype, seed)
                return QuantisedCollectives(c, policy_of(name)).all_reduce_delta(mine, SITE, 0)

            cases.append((shape, dtype, seed, name, run_ranks(size, rank)[0]))
    assert pool(size, path).call("hammer_deltas", calls, cases) == calls


@pytest.mark.parametrize("size", [2, 3])
def test_the_engine_sums_as_it_is_told(tmp_path, size):
    folder = save_tokenizer(save_tiny("mamba", tmp_path, vocab_size=300))
    prompt = [list(range(1, 30))]
    logits, paths = {}, {}
    for name in ("exact", "int8", "int4"):
        with LLM(folder, tp=size, device="cpu", threads=1, all_reduce=name) as llm:
            logits[name] = llm.logits(prompt)[0]
            paths[name] = llm.report()["collectives"]
    assert "deltas" not in paths["exact"]
    assert paths["int8"].endswith("deltas int8")
    int8, int4 = (relative_error(logits[name], logits["exact"]) for name in ("int8", "int4"))
    assert 0 < int8 < 0.03
    assert int8 < int4 < 0.6


def test_a_policy_that_does_not_fit_is_the_user_s_error(tmp_path):
    folder = save_tokenizer(save_tiny("mamba", tmp_path, vocab_size=300))
    file = tmp_path / "policy.json"
    file.write_text('{"sites": {"layers.7.mixer.out_proj": "int8"}}')
    with pytest.raises(ValueError, match=r"layers\.7\.mixer\.out_proj, which this model does not"):
        LLM(folder, tp=2, device="cpu", threads=1, all_reduce=str(file))


def test_eval_compares_with_the_exact_sum(tmp_path, capsys):
    folder = save_tokenizer(save_tiny("mamba2", tmp_path, vocab_size=300, n_groups=1))
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 8)
    command = ["eval", str(folder), "--text", str(text), "--device", "cpu", "--json"]
    ranks = ["--tp", "2", "--threads", "1", "--max-step-tokens", "50"]
    assert main([*command, *ranks, "--all-reduce", "int8"]) == DONE
    int8 = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main([*command, "--all-reduce", "int8"]) == DONE
    single = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert int8["shares"] == {"int8": 1.0}
    assert int8["quantised_share"] == 1.0
    assert int8["reference_perplexity"] == pytest.approx(single["perplexity"], rel=1e-4)
    assert 0 < int8["mean_kl"] < int8["p99_kl"] < 0.1
    assert int8["top1_agreement"] > 0.9
    assert "mean_kl" not in single
