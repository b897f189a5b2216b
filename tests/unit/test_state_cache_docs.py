"""The tables of docs/state-cache.md are those of the raw results, and its options exist."""

import json
import re
from dataclasses import fields
from pathlib import Path

from sidewinder.config import EngineConfig

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "state-cache.md").read_text()


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def kl_rows():
    rows = []
    for model, found in result("state-cache-kl")["models"].items():
        cells = [model]
        for dtype in ("bfloat16", "int8"):
            own = found[dtype]
            cells += [f"{own['bytes']:.0%}", f"{own['mean_kl']:.1e}"]
            cells += [f"{own['top1_agreement']:.2%}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def ttft_rows():
    found = result("prefix-cache")
    whole = found["prefix_tokens"] + found["question_tokens"]
    cases = [
        ("cache off", "cache_off_ttft_s", [whole]),
        ("cold", "cold_ttft_s", [whole]),
        ("warm: another question", "warm_ttft_s", uncached(found["warm_cached_tokens"], whole)),
        (
            "the same prompt again",
            "same_prompt_ttft_s",
            uncached(found["same_prompt_cached_tokens"], whole),
        ),
    ]
    return [
        f"| {name} | {found[key]['median']:.3f} ({found[key]['min']:.3f} to "
        f"{found[key]['max']:.3f}) | {' or '.join(map(str, n_run))} |"
        for name, key, n_run in cases
    ]


def uncached(cached, whole):
    return sorted({whole - n for n in cached}, reverse=True)


def test_the_tables_are_the_results():
    for row in (*kl_rows(), *ttft_rows()):
        assert row in DOC, row


def test_the_speedup_is_the_results_and_large_enough():
    speedup = result("prefix-cache")["speedup"]
    assert f"Warm is {speedup:.0f}x faster than cold" in DOC
    assert speedup >= 10


def test_every_option_is_named_and_exists():
    options = {field.name for field in fields(EngineConfig) if "state_cache" in field.name}
    assert options == set(re.findall(r"`(state_cache_[a-z_]+)`", DOC))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", DOC):
        assert (ROOT / "docs" / target).exists(), target
