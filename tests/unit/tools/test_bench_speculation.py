"""What `bench_speculation` counts, and the tables that it writes."""

import json

import bench_speculation as bench
import pytest

from sidewinder.engine.drafts import Drafter

STEPS = {0: 1.0, 1: 1.1, 3: 1.3, 15: 2.5}


def test_steps_between_those_measured():
    assert bench.between(STEPS, 0) == 1.0
    assert bench.between(STEPS, 3) == 1.3
    assert bench.between(STEPS, 2) == pytest.approx(1.2)
    assert bench.between(STEPS, 9) == pytest.approx(1.9)


def test_replays_count_every_token_once(monkeypatch):
    monkeypatch.setattr(bench, "PROMPT_TOKENS", 40)
    monkeypatch.setattr(bench, "TEXT_TOKENS", 60)
    monkeypatch.setattr(bench, "N_REPLAYED", 2)
    never = bench.replay(range(300), 8, STEPS)
    assert never["tokens_per_step"] == never["times_as_fast"] == 1
    loop = bench.replay([1, 2, 3] * 100, 3, STEPS)
    # Four tokens a step, the last steps aside, at 1.3 times the time.
    assert loop["tokens_per_step"] == pytest.approx(4, rel=0.1)
    assert loop["times_as_fast"] == pytest.approx(4 / 1.3, rel=0.1)
    assert loop["accepted"] == 1


def test_another_drafter_serves_for_a_while_only():
    from sidewinder.engine import scheduler

    with bench.drafting_by(bench.WrongDrafter):
        assert scheduler.Drafter is bench.WrongDrafter
    assert scheduler.Drafter is Drafter


def result(same_texts=True):
    gains = [{"speculate": most, "times_as_fast": 1 + most / 10} for most in bench.MOST]
    cost = {"shape": "mamba-130m", "weight_dtype": "auto", "step_ms": 7.25, "replay": gains}
    cost["times_as_long"] = {str(n): 1 + n / 100 for n in bench.DRAFTS}
    text = {"model": "zamba", "temperature": 0.7, "same_texts": same_texts}
    text |= {"tokens_per_step": 1.25, "accepted": 0.5, "times_as_fast": 1.125}
    return {"costs": [cost], "texts": [text]}


def test_tables():
    head, rule, row = bench.cost_lines(result())
    assert row == "| mamba-130m, bf16 | 7.2 | 1.01 | 1.03 | 1.07 | 1.15 | 1.40 x | 1.80 x |"
    assert head.count("|") == rule.count("|") == row.count("|")
    head, rule, row = bench.text_lines(result())
    assert row == "| zamba | 0.7 | 1.25 | 50% | 1.12 |"
    assert head.count("|") == rule.count("|") == row.count("|")


def test_the_page_has_what_was_measured():
    measured = json.loads(
        (bench.PAGE.parents[1] / "benchmarks/results/speculation.json").read_text()
    )
    assert bench.filled(bench.PAGE.read_text(), measured) == bench.PAGE.read_text()


def test_a_changed_text_is_no_result():
    with pytest.raises(ValueError, match="drafts changed a text of zamba"):
        bench.text_lines(result(same_texts=False))
