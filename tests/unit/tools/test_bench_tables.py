"""`make bench`: rounds and ratios, contestants, and the page that is written from results."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import bench_all
import bench_report
import pytest
from peers.contestant import Contestant, Together
from tables import measure, sections
from tables.cases import Case, Row
from tables.start import Settings

TOOLS = Path(__file__).parents[3] / "tools"

ECHO = """
from peers.lines import serve
print("a library prints")
def answer(request):
    if request.get("fail"):
        raise SystemExit("it broke here")
    return {"rate": request["batch"] * 2.0}
serve(answer, {"version": 1})
"""


@pytest.fixture
def echo():
    contestants = []

    def start():
        env = {"PYTHONPATH": str(TOOLS)}
        contestants.append(Contestant([sys.executable, "-c", ECHO], "0", env))
        return contestants[-1]

    yield start
    for contestant in contestants:
        contestant.close()


def test_a_contestant_answers_until_it_fails(echo):
    contestant = echo()
    assert contestant.about == {"version": 1}
    assert [contestant.ask({"batch": n}) for n in (1, 4)] == [{"rate": 2.0}, {"rate": 8.0}]
    with pytest.raises(RuntimeError, match="it broke here"):
        contestant.ask({"fail": True})


def test_together_adds_figures(echo):
    assert Together([echo(), echo()]).ask({"batch": 3}) == {"rate": 12.0}


class Fake:
    """Answers with the next of its figures, and notes when it was asked."""

    def __init__(self, name, figures, calls):
        self.name, self.figures, self.calls = name, iter(figures), calls

    def ask(self, _):
        self.calls.append(self.name)
        return {"rate": next(self.figures)}


def test_ratios_pair_rounds_and_the_order_alternates(tmp_path):
    calls = []
    alive = {"a": Fake("a", [99, 10, 40, 30], calls), "b": Fake("b", [1, 5, 10, 10], calls)}
    ratio = Row("a over b", (("a", "rate"),), (("b", "rate"),), target=3.0)
    case = Case("load", 4, 1, 1, (ratio,), rounds=3)
    result = measure.measure_case(case, alive, Settings(tmp_path))
    assert calls == list("ababbaab")  # a round to warm up, then three
    (row,) = result["rows"]
    assert (row["median"], row["min"], row["max"], row["rounds"]) == (3.0, 2.0, 4.0, 3)
    assert [answers["a"]["rate"] for answers in result["rounds"]] == [10, 40, 30]


def test_the_time_budget_ends_a_case_after_one_round(tmp_path):
    alive = {"a": Fake("a", [1, 2], [])}
    case = Case("load", 4, 1, 1, (Row("a", (("a", "rate"),)),), budget_s=0, warm_up=False)
    assert measure.measure_case(case, alive, Settings(tmp_path))["rows"][0]["rounds"] == 1


@pytest.mark.parametrize("section", sections.SECTIONS, ids=lambda section: section.name)
def test_rows_name_entrants_of_their_group(section):
    for group in section.groups:
        names = {entrant.name for entrant in group.entrants}
        assert len(names) == len(group.entrants)
        for case in group.cases:
            assert {name for row in case.rows for name, _ in row.over + row.under} <= names


def test_unknown_sections_are_refused():
    with pytest.raises(ValueError, match="no section 'decode'; use prefill"):
        bench_all.chosen_sections(["decode"])
    with pytest.raises(ValueError, match="name two"):
        bench_all.two_cores("0")


def result_of(section, value):
    """A raw result in which every figure of a section is `value`."""
    groups = [
        {
            "shape": group.shape,
            "n_layers": group.n_layers or "all",
            "cases": [
                {
                    "name": case.name,
                    "rows": [
                        {"label": row.label, "unit": row.unit, "target": row.target}
                        | {"at_least": row.at_least, "rounds": 3}
                        | dict.fromkeys(("median", "min", "max"), value)
                        for row in case.rows
                    ],
                }
                for case in group.cases
            ],
        }
        for group in section.groups
    ]
    machine = {"cpu": "c", "usable_cores": 2, "torch": "t", "commit": "x", "date": "d"}
    return {
        "groups": groups,
        "machine": machine | {"load_1min": 0.1},
        "load_1min_after": 0.2,
        "tiny": False,
    }


def test_the_page_says_what_is_missing_and_what_was_reached():
    by_name = {section.name: section for section in sections.SECTIONS}
    results = {"decode-b1": result_of(by_name["decode-b1"], 1.6)}
    page = bench_report.page(results, [])
    assert "| int8 over bf16 | 1.60 x | 1.60 to 1.60, 3 rounds | ≥ 1.70: **not met** |" in page
    assert (
        "two threads: of read bandwidth | 1.60 x | 1.60 to 1.60, 3 rounds | ≥ 0.850: met |" in page
    )
    assert "`make bench ONLY=prefill` has not run yet." in page
    for section in sections.SECTIONS:
        assert section.title in page
        for group in section.groups:
            assert section.name in results or f"| {group.cases[0].name} |" in page


def test_all_reduce_stands_beside_bare_spinning():
    times = {"calls": 100_000, "median_us": 9.0, "p999_us": 1500.0, "max_us": 9000.0}
    rows = [times | {"bytes": size} for size in (8 << 10, 512 << 10, 0)]
    table = "\n".join(bench_report.all_reduce_table({"all_reduce": rows}))
    assert (
        "8 KiB | 100,000 | 9.00 | 1,500 | 9,000 | median ≤ 10: met, P99.9 ≤ 1,000: **not met**"
        in table
    )
    assert "| bare exchange | 100,000 |" in table


def test_tiny_results_are_not_published(tmp_path):
    result = result_of(sections.SECTIONS[0], 1.0) | {"tiny": True}
    (tmp_path / "prefill.json").write_text(json.dumps(result))
    assert bench_report.read_results(tmp_path) == {}


@pytest.mark.slow
def test_all_reduce_runs_tiny(tmp_path):
    args = argparse.Namespace(
        sections=["all-reduce"], results=tmp_path, work=tmp_path, llama_python=None,
        cores=None, tiny=True,
    )  # fmt: skip
    command = [sys.executable, str(TOOLS / "bench_all.py"), *args.sections, "--tiny"]
    command += ["--results", str(tmp_path), "--work", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((tmp_path / "all-reduce.json").read_text())
    assert [row["bytes"] for row in result["all_reduce"]] == [8192, 524288, 0]
    assert all(0 < row["median_us"] <= row["max_us"] for row in result["all_reduce"])


@pytest.mark.slow
def test_peers_are_compared_tiny(tmp_path):
    command = [sys.executable, str(TOOLS / "bench_peers.py"), "--tiny", "--work", str(tmp_path)]
    command += ["--scenarios", "decode-1", "--only", "sidewinder", "transformers"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (case,) = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert [row["label"] for row in case["rows"]] == [
        "sidewinder, 1 threads",
        "transformers",
        "sidewinder, 1 threads over transformers",
    ]
    assert case["rows"][2]["median"] > 0


def test_a_section_of_another_level_is_skipped(monkeypatch, tmp_path, capsys):
    def never(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(bench_all, "measure_section", never)
    monkeypatch.setattr(bench_all, "two_cores", lambda _: ("0", "1"))
    monkeypatch.setattr(bench_all.os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(bench_all.native, "isa", lambda: "avx512")
    args = argparse.Namespace(
        sections=["peers-llama-130m-avx2"], results=tmp_path, work=tmp_path,
        llama_python="python", cores=None, tiny=True,
    )  # fmt: skip
    assert bench_all.run(args) == 0
    written = capsys.readouterr()
    assert "is for level avx2; the best here is avx512" in written.out + written.err
