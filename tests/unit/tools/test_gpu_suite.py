"""The GPU suite's own machinery: sections, budgets, what a failing one leaves. No GPU needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sidewinder.ops import launching
from sidewinder.ops.dispatch import available, forced
from sidewinder.projection.devices import device_of
from sidewinder.projection.one_card import compare_suite, read_suite
from sidewinder.projection.timed_kernels import EFFICIENCIES

TOOLS = Path(__file__).parents[3] / "tools"
sys.path.insert(0, str(TOOLS))

import gpu_suite  # noqa: E402
from card_tables import ENGINE  # noqa: E402
from gpu_checks.cases import all_cases  # noqa: E402
from gpu_checks.compile import try_candidate  # noqa: E402
from gpu_checks.context import DRY_MODELS, HYBRIDS, INTEGER_MODELS, MODELS, Context  # noqa: E402
from gpu_checks.draft_cases import DRAFT_MODELS  # noqa: E402
from gpu_checks.kernels import calibration, of_models  # noqa: E402
from gpu_checks.verdicts import verdicts  # noqa: E402


def test_every_candidate_of_every_case_can_be_compiled_ahead():
    pytest.importorskip("triton")
    from sidewinder.ops.linear.triton import candidates

    code = (
        "from gpu_checks.ahead import *\n"
        "wanted = launched_by_cases(Context(True, 1.0, ahead=True), device_of('h100'))\n"
        "rows = [dict(each.constants) for each in wanted if each.function == 'row_product']\n"
        "print(len(wanted), len({(row['BLOCK_O'], row['BLOCK_I']) for row in rows}))"
    )
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOOLS, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    n, row_sizes = map(int, done.stdout.split())
    assert n > 100
    assert row_sizes == len(candidates(24, 24)) - 1, "torch's product needs none"


def test_dry_run_writes_every_section_asked_for(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, str(TOOLS / "gpu_suite.py"), "--dry-run"]
    command += ["--sections", "kernels,end_to_end,shards", "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads(output.read_text())
    assert report["versions"]["dry_run"]
    for name in ("kernels", "shards"):
        rows = [row for row in report["sections"][name]["rows"] if row.get("kind") != "peer"]
        assert len(rows) > 10
        assert not [row for row in rows if "error" in row or "skipped" in row]
        if name == "kernels":
            assert all(row["seconds"] > 0 for row in rows)
            in_int8 = {row["case"].split(" by ")[0] for row in rows if "int8, " in row["case"]}
            assert {"int8, 1 row", "int8, 32 rows", "experts, int8, 1"} <= in_int8
            in_int4 = {row["case"].split(" by ")[0] for row in rows if "int4, " in row["case"]}
            assert {"int4, 1 row", "int4, 32 rows", "experts, int4, 1"} <= in_int4
    engines = {row["model"]: row for row in report["sections"]["end_to_end"]["rows"]}
    for model in MODELS:
        assert ("latency, int8" in engines[model]) == (model in INTEGER_MODELS), model
        assert ("latency, int4" in engines[model]) == (model in INTEGER_MODELS), model
        assert ("latency, 7 wrong drafts" in engines[model]) == (model in DRAFT_MODELS), model
    assert report["verdicts"] == [], "nor does it judge"
    assert report["calibration"] == {}, "a dry run calibrates nothing"
    check_that_the_projection_finds_every_figure(report, output)


def check_that_the_projection_finds_every_figure(report, file):
    """As if a card had written the dry run; `tests/unit/projection` has the errors."""
    report["versions"]["dry_run"] = False
    report["machine"]["gpu"] = "NVIDIA H100 80GB HBM3"
    file.write_text(json.dumps(report))
    found = {(row["model"], row["tp"], row["what"]) for row in compare_suite(read_suite(file))}
    whole = {(model, 1, what) for model in (*MODELS, *HYBRIDS) for what in ENGINE}
    shards = {
        (model, tp, what)
        for model in MODELS
        for tp in (1, 2, 4)
        for what in ("prefill", "decode 1", "decode 3")
    }
    assert found == whole | shards


def test_attention_of_fixed_shapes_is_timed_for_all_that_attend():
    """By Triton's kernels, whatever runs elsewhere."""
    pytest.importorskip("triton")
    context = Context(dry_run=False, budget_s=1, ahead=True)
    cases = [case for _, case in all_cases(context) if case.name.endswith(", fixed shape")]
    assert len(cases) == sum(context.config(m).attention is not None for m in (*MODELS, *HYBRIDS))
    for case in cases:
        with launching.recording() as launches, forced("triton"):
            case.make()()
        assert [each.kernel.fn.__name__ for each in launches] == ["weigh", "average"]


def test_drafts_are_timed_for_every_model():
    """By kernels that walk one chain, from a state that is read once."""
    pytest.importorskip("triton")
    context = Context(dry_run=False, budget_s=1, ahead=True)
    cases = [case for _, case in all_cases(context) if case.name.startswith("8 drafts")]
    mamba1 = sum(not context.config(model).is_mamba2 for model in (*MODELS, *HYBRIDS))
    assert len(cases) == 2 * len((*MODELS, *HYBRIDS)) + mamba1
    for case in cases:
        with launching.recording() as launches, forced("triton"):
            case.make()()
        (launch,) = launches
        assert (launch.kernel.__name__, launch.grid[0]) == ("update_chains", 1)
    kinds = {case.kind for case in cases}
    assert not kinds & set(EFFICIENCIES), "the projection has no steps with drafts"


def test_the_tiny_sister_of_a_model_is_of_its_family():
    real, dry = (Context(dry_run=dry, budget_s=1) for dry in (False, True))
    for model in (*MODELS, *HYBRIDS):
        assert dry.config(model).family == real.config(model).family, model
    assert set(DRY_MODELS) == {*MODELS, *HYBRIDS}


def test_calibration_is_of_the_four_models():
    rows = [{"model": model} for model in (*MODELS, *HYBRIDS, "any")]
    assert of_models(rows) == [{"model": model} for model in (*MODELS, "any")]


def test_every_operator_is_timed():
    cases = [case for _, case in all_cases(Context(dry_run=True, budget_s=1))]
    timed = {case.name.replace(",", "").split()[0] for case in cases}
    # linear is "1 row by ..."; decode_add runs decode's kernel.
    for operator in set(available()) - {"linear", "codec_decode_add"}:
        assert operator.removeprefix("codec_") in timed, operator


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run the suite")
def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py"])
    assert gpu_suite.main() == 2
    assert "--dry-run" in capsys.readouterr().err


def test_a_failing_section_leaves_its_error_and_the_rest_goes_on(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    argv = ["gpu_suite.py", "--dry-run", "--sections", "tests,sharing", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", argv)

    def run(name, _):
        if name == "tests":
            raise MemoryError("no room")
        return {"rows": [{"passed": True}]}

    monkeypatch.setattr(gpu_suite, "run_section", run)
    assert gpu_suite.main() == 1
    sections = json.loads(output.read_text())["sections"]
    assert sections["tests"]["error"] == "MemoryError: no room"
    assert "run_section" in sections["tests"]["traceback"]
    assert sections["sharing"]["rows"] == [{"passed": True}]


def test_processes_that_die_or_dawdle(tmp_path, monkeypatch):
    missing = tmp_path / "nothing.json"
    code = "import sys; print('broken', file=sys.stderr); sys.exit(3)"
    died = gpu_suite.run_apart([sys.executable, "-c", code], missing, 20)
    assert died["error"] == "exit status 3"
    assert "broken" in died["stderr"]
    monkeypatch.setattr(gpu_suite, "GRACE_S", 0.0)
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    late = gpu_suite.run_apart(slow, missing, 1.0)
    assert late["error"].startswith("ended after 1")
    assert late["wall_s"] < 20


def test_budgets_fit_into_eight_minutes():
    assert sum(seconds for _, seconds in gpu_suite.SECTIONS.values()) <= gpu_suite.TOTAL_S
    assert gpu_suite.TOTAL_S <= 8 * 60


SECTIONS = {
    "end_to_end": {"rows": [{
        "model": "mamba-2.8b", "decode_percent": 71.0, "prefill_percent": 50.0,
        "latency, graphs auto": {"tpot_s": {"median": 0.002}},
    }]},
    "transformers": {"rows": [{"model": "mamba-2.8b", "tpot_s": 0.03}]},
    "kernels": {"rows": [
        {"model": "mamba-2.8b", "case": "selective_scan, prefill", "percent_of_floor": 20.0,
         "tuned_percent_of_floor": 25.0, "seconds": 3.0, "tuned_seconds": 2.0},
        {"model": "mamba-2.8b", "case": "mamba_ssm selective_scan_fn, prefill", "seconds": 4.0},
    ]},
    "sharing": {"rows": [{"passed": True}, {"error": "no"}]},
}  # fmt: skip


def test_verdicts_are_the_sections_figures_beside_the_targets():
    found = {row["what"]: (row["value"], row["met"]) for row in verdicts(SECTIONS)}
    assert found["mamba-2.8b: decode at batch 1, percent of the read bandwidth"] == (71.0, True)
    prefill = "mamba-2.8b: prefill of 8,192 tokens, percent of torch's GEMM rate on its shapes"
    assert found[prefill] == (50.0, False)
    assert found["mamba-2.8b: decode, times as fast as transformers"] == (15.0, True)
    scan = "mamba-2.8b: selective scan, 8,192 tokens, percent of its bytes' floor"
    assert found[scan] == (25.0, False)
    assert found["mamba-2.8b: selective scan, times as fast as mamba-ssm's"] == (2.0, True)
    assert found["ranks sharing the card agree with one rank, comparisons"] == ("1 of 2", False)
    assert found["GPU tests, failures"] == (None, None)
    assert {met for what, (_, met) in found.items() if "falcon" in what} == {None}


def test_a_candidate_that_does_not_exist_compiles_nothing(monkeypatch):
    from sidewinder.ops import tuning

    context = Context(dry_run=True, budget_s=1)
    monkeypatch.setattr("gpu_checks.compile.cases_of", lambda _: {"case": Probe()})
    assert try_candidate(context, "case", 1)["candidate"] == 1
    assert try_candidate(context, "case", 2) is None
    assert tuning.choose("probe", (), CANDIDATES, lambda _: None) == CANDIDATES[0]


CANDIDATES = ({"block": 1}, {"block": 2})


class Probe:
    """A case whose operator has two candidates."""

    def make(self):
        from sidewinder.ops import tuning

        return lambda: tuning.choose("probe", (), CANDIDATES, lambda _: None)


def test_calibration_takes_each_kernel_for_what_bounds_it(monkeypatch):
    device = device_of("h100")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("gpu_checks.kernels.kernel_cost", lambda _: 2e-6)

    def row(kind, seconds, **values):
        return {"kind": kind, "seconds": seconds, "flops": 0.0, "special": 0.0, **values}

    rows = [
        row("scan", 1.0, bytes=0.4 * device.bytes_per_s, special=0.75 * device.special_per_s),
        row("scan", 1.0, bytes=0.6 * device.bytes_per_s),
        row("gemm", 2.0, bytes=1e9, flops=1.4 * device.flops_16bit, tuned_seconds=None),
        row("scan", 1.0, bytes=1e3, special=1e3),
        {"kind": "peer", "skipped": "no"},
    ]
    found = calibration(Context(dry_run=False, budget_s=1), rows)
    assert found == pytest.approx({"special": 0.75, "scan": 0.6, "gemm": 0.7, "kernel_s": 2e-6})


def test_less_time_is_shared_in_proportion(tmp_path, monkeypatch):
    budgets = {}

    def run(name, context):
        budgets[name] = context.budget_s
        return {"rows": []}

    monkeypatch.setattr(gpu_suite, "run_section", run)
    names = ("kernels", "end_to_end", "shards")
    argv = ["gpu_suite.py", "--dry-run", "--total", "60", "--output", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", [*argv, "--sections", ",".join(names)])
    assert gpu_suite.main() == 0
    whole = sum(gpu_suite.SECTIONS[name][1] for name in names)
    scale = (60 - gpu_suite.GRACE_S) / whole
    assert budgets["kernels"] == pytest.approx(scale * gpu_suite.SECTIONS["kernels"][1], abs=1)
    # What the first left belongs to those after it.
    assert budgets["shards"] == pytest.approx(60 - gpu_suite.GRACE_S, abs=1)
