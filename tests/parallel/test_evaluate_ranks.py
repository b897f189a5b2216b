"""`sidewinder eval` on real ranks: sensitivity, then a budget that reads it."""

import json
import math
from pathlib import Path

import pytest

from sidewinder import LLM
from sidewinder.cli import main
from sidewinder.cli.main import BAD_USAGE, DONE
from sidewinder.testing import save_tiny, save_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = save_tiny("zamba", tmp_path_factory.mktemp("model"), vocab_size=300)
    return str(save_tokenizer(folder))


def figures(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_budget_uses_what_was_measured(model, capsys, tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("def f(x):\n    return x + 1\n" * 8)
    common = ["eval", model, "--text", str(file), "--tp", "2", "--threads", "1", "--window", "64"]
    assert main([*common, "--all-reduce-kl", "0.1", "--json"]) == BAD_USAGE
    assert "eval MODEL --text FILE --sensitivity" in capsys.readouterr().err

    assert main([*common, "--sensitivity", "--json"]) == DONE
    measured = figures(capsys)
    assert Path(measured["file"]).parent == Path(model)
    assert len(measured["sites"]) == 8
    assert all(0 < costs["int8"] < costs["int4"] for costs in measured["sites"].values())

    budget = 0.5 * measured["together"]["int4"]
    assert main([*common, "--all-reduce-kl", str(budget), "--json"]) == DONE
    found = figures(capsys)
    assert 0 < found["mean_kl"] < 1.3 * budget
    assert found["quantised_share"] == pytest.approx(1 - found["shares"].get("exact", 0))
    assert set(found["policy"]["sites"]) == set(measured["sites"])
    assert found["p99_kl"] >= found["mean_kl"]
    assert math.isclose(
        found["perplexity"], found["reference_perplexity"] * (1 + found["perplexity_change"])
    )

    with LLM(model, tp=2, threads=1, all_reduce_kl=budget) as llm:
        assert "; deltas " in llm.report()["collectives"]
        assert llm.logits([[1, 2, 3]])[0].isfinite().all()


def test_rotation_is_an_option_of_the_command_line(model, capsys, tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("import os\n" * 4)
    assert main(["eval", model, "--text", str(file), "--rotate", "--threads", "1"]) == DONE
    printed = capsys.readouterr().out
    assert "exact sums" in printed
    assert "bytes of sums  100 % exact" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sensitivity"], "tp=1 sums nothing"),
        (["--tp", "2", "--sensitivity", "costs.txt"], "must end in .json"),
        (["--tp", "2", "--sensitivity", "/nowhere/costs.json"], "/nowhere is not a folder"),
        (["--tp", "2", "--all-reduce", "int8", "--window", "1"], "two tokens or more"),
        (["--tp", "2", "--all-reduce", "exact", "--all-reduce-kl", "1"], "nothing to choose"),
        (["--tp", "2", "--all-reduce-kl", "0"], "all_reduce_kl=0.0 is not a positive"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_runs(model, options, words, capsys, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abc")
    assert main(["eval", model, "--text", str(file), *options]) == BAD_USAGE
    assert words in capsys.readouterr().err
