"""The projection's error on a card's suite: made-up results whose errors are known."""

import json
from dataclasses import replace

import pytest
import torch
from gpu_checks.shards import LocalCost
from projection_cases import IDEAL
from torch.utils._python_dispatch import TorchDispatchMode

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.parallel.group import TensorParallel
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.devices import device_of
from sidewinder.projection.links import link_of
from sidewinder.projection.model import Load, Setting, project, step_time
from sidewinder.projection.one_card import LocalSums, compare_suite, read_suite, shard_seconds
from sidewinder.projection.sums import EXACT
from sidewinder.projection.timed_kernels import EFFICIENCIES
from sidewinder.projection.work import Step

H100 = device_of("h100")
HALF = dict.fromkeys(EFFICIENCIES, 0.5)
"""Half as efficient means twice as long: kernels and the host cost nothing in these tests."""


def ideal(model, tp=1):
    config = parse_model_config(SHAPES[model] | {"dtype": "bfloat16"})
    return Setting(config, tp, torch.bfloat16, H100, link_of("nvlink4"), IDEAL)


def run(batch, prompt, output, prefill, tpot):
    """What `bench.speed.measure` writes, as far as it is read."""
    return {
        "load": {"batch": batch, "prompt_tokens": prompt, "output_tokens": output},
        "prefill_s": {"median": prefill},
        "tpot_s": {"median": tpot},
        "total_s": {"median": prefill + (output - 1) * tpot},
    }


def suite(**sections):
    return {
        "machine": {"gpu": "NVIDIA H100 80GB HBM3"},
        "versions": {"dry_run": False},
        "calibration": {
            **HALF,
            "kernel_s": 0,
            "product_s": 0,
            "row_s": 0,
            "update_s": 0,
            "host_s": 0,
        },
        "sections": sections,
    }


def errors(tmp_path, result):
    file = tmp_path / "gpu-suite-h100.json"
    file.write_text(json.dumps(result))
    rows = compare_suite(read_suite(file))
    for row in rows:
        assert row["error"] == pytest.approx(row["projected_s"] / row["measured_s"] - 1)
    return {(row["model"], row["tp"], row["what"]): round(row["error"], 9) for row in rows}


def test_whole_models(tmp_path):
    """At half the efficiency all takes twice the ideal time; the card took 1.6, 2.5 and 4 times."""
    one = project(ideal("mamba-2.8b"), Load(1, 8192, 64))
    many = project(ideal("mamba-2.8b"), Load(32, 512, 64))
    row = {
        "model": "mamba-2.8b",
        "latency, graphs auto": run(1, 8192, 64, 1.6 * one.ttft, 2.5 * one.tpot),
        "latency, graphs off": run(1, 8192, 64, 9.0, 9.0),
        "batch 32, graphs auto": run(32, 512, 64, 4 * many.ttft, 4 * many.tpot),
    }
    assert errors(tmp_path, suite(end_to_end={"rows": [row]})) == {
        ("mamba-2.8b", 1, "TTFT"): 0.25,
        ("mamba-2.8b", 1, "TPOT"): -0.2,
        ("mamba-2.8b", 1, "batch 32, TTFT"): -0.5,
        ("mamba-2.8b", 1, "batch 32, whole"): -0.5,
    }


@pytest.mark.parametrize("model", ["falcon-mamba-7b", "zamba-7b", "mamba2-2.7b"])
def test_shards(tmp_path, model):
    def seconds(tp, step):
        return shard_seconds(ideal(model, tp), step, 0.0)

    rows = [
        {"model": model, "tp": tp, "prefill_tokens": 1024,
         "prefill_s": 1.6 * seconds(tp, Step(1024, 1, 0, 512.0)),
         "decode_1_s": 2 * seconds(tp, Step(1, 1, 1, 13.0)),
         "decode_32_s": 4 * seconds(tp, Step(32, 32, 32, 13.0))}
        for tp in (1, 4)
    ]  # fmt: skip
    assert errors(tmp_path, suite(shards={"rows": rows})) == {
        (model, tp, what): error
        for tp in (1, 4)
        for what, error in (("prefill", 0.25), ("decode 1", 0.0), ("decode 32", -0.5))
    }


def test_a_shard_alone_has_the_work_of_a_rank_and_copies_for_its_sums():
    where = ideal("mamba-2.8b", 4)
    step = Step(1, 1, 1, 13.0)
    work = sum(step_time(where, step, EXACT).work.values())
    # 64 layers sum d_model and dt, B, C; the embedding is summed once, logits are gathered.
    values = 64 * (2560 + 160 + 2 * 16) + 2560
    copied = values * (6 + 3 * 10 + 6) + 50280 * 2
    assert shard_seconds(where, step, 0.0) == pytest.approx(work + copied / 3350e9)
    # 129 sums of four parts, and the gather.
    adding = shard_seconds(where, step, 1.0) - shard_seconds(where, step, 0.0)
    assert adding == pytest.approx(129 * 5 + 1)


def test_a_prefill_of_a_shard_ends_before_the_logits():
    where = ideal("mamba-2.8b", 2)
    work = step_time(where, Step(1024, 1, 0), EXACT)
    assert not {"lm_head", "sampling"} & set(work.work)
    assert "logits gather" not in work.sums


def test_a_shards_decode_step_waits_for_the_host_and_its_prefill_does_not():
    where = ideal("mamba-2.8b")
    slow = replace(where, calibration=replace(IDEAL, host_s=1.0))
    for step, host in ((Step(1, 1, 1), 1.0), (Step(64, 1, 0), 0.0)):
        late = shard_seconds(slow, step, 0.0) - shard_seconds(where, step, 0.0)
        assert late == pytest.approx(host)


def test_one_rank_alone_has_no_sums():
    where, step = ideal("zamba-7b"), Step(1, 1, 1, 13.0)
    assert shard_seconds(where, step, 1.0) == shard_seconds(where, step, 0.0)


class Kernels(TorchDispatchMode):
    """Counts what computes."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in ("aten::_to_copy", "aten::add_", "aten::cat")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_local_sums_are_those_of_the_suite(ranks):
    kernels = Calibration(*[1] * 9, kernel_s=1.0)
    sums = LocalSums(H100, link_of("nvlink4"), kernels)
    group = LocalCost(TensorParallel(0, ranks))
    with Kernels() as counted:
        group.all_reduce(torch.ones(1, 8, dtype=torch.bfloat16))
    assert counted.count == int(sums.exact(16, ranks)[0]) == ranks + 1
    with Kernels() as counted:
        group.all_gather(torch.ones(1, 8), [8] * ranks)
    assert counted.count == int(sums.gather(16, ranks)[0]) == 1


def test_what_failed_or_is_missing_has_no_row(tmp_path):
    no_decode = run(1, 8192, 1, 0.1, 0.0) | {"tpot_s": None}
    rows = [
        {"model": "mamba-2.8b", "error": "OutOfMemoryError: no room"},
        {"model": "falcon-mamba-7b", "skipped": "out of time"},
        {"model": "mamba2-2.7b", "latency, graphs auto": no_decode},
    ]  # fmt: skip
    shards = {"rows": [
        {"model": "zamba-7b", "tp": 4, "skipped": "out of time", "decode_1_s": 1.0},
        {"model": "zamba-7b", "tp": 8, "error": "no room", "decode_1_s": 1.0},
    ]}  # fmt: skip
    assert set(errors(tmp_path, suite(end_to_end={"rows": rows}, shards=shards))) == {
        ("mamba2-2.7b", 1, "TTFT")
    }
    died = suite(end_to_end={"error": "ended after 110 s", "stderr": ""})
    assert errors(tmp_path, died) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": {"gpu": None}}, "without a card"),
        ({"versions": {"dry_run": True}}, "without a card"),
        ({"machine": {"gpu": "Unheard-of 9"}}, "data sheet of 'Unheard-of 9'"),
        ({"machine": {}}, "not a result of tools/gpu_suite.py: KeyError"),
        ({"sections": 7}, "not a result of tools/gpu_suite.py"),
        ({"calibration": {}, "sections": {"kernels": {"error": "it died"}}}, r"\(it died\)"),
        ({"calibration": {}}, "section 'kernels' is missing"),
        ({"calibration": {"gem": 1}}, "known: gemm"),
        ({"sections": {"shards": {"rows": [{"tp": 2}]}}}, "names no model"),
        ({"sections": {"shards": {"rows": [{"model": "gpt", "tp": 2}]}}}, "'gpt' is no published"),
        ({"sections": {"shards": {"rows": [{"model": "mamba-2.8b"}]}}}, "tp=None"),
        (
            {"sections": {"shards": {"rows": [{"model": "mamba-2.8b", "tp": 1, "prefill_s": 1}]}}},
            "prefill_tokens=None is not a positive",
        ),
        (
            {"sections": {"shards": {"rows": [{"model": "mamba-2.8b", "tp": 1, "decode_1_s": 0}]}}},
            "decode_1_s=0 is not a positive",
        ),
        (
            {"sections": {"end_to_end": {"rows": [
                {"model": "mamba-2.8b", "latency, graphs auto": {"load": {}}}
            ]}}},
            "batch=None is not a positive",
        ),
        (
            {"sections": {"kernels": {"rows": [{"seconds": 1.0, "bytes": 1e9}]}}},
            "timed kernels are not as",
        ),
    ],
)  # fmt: skip
def test_broken_results(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        errors(tmp_path, suite() | changes)


def test_sums_take_the_time_of_a_kernel_that_only_adds(tmp_path):
    """As the suite noted it; the model's own kernels are those that were timed."""
    file = tmp_path / "suite.json"
    norm = {"kind": "memory", "case": "rms_norm, decode 1", "seconds": 2e-6, "bytes": 3e4}
    kernels = {"rows": [norm | {"flops": 0.0, "special": 0.0}]}
    file.write_text(json.dumps(suite(kernels=kernels) | {"calibration": {"kernel_s": 1e-6}}))
    found = read_suite(file)
    assert (found.calibration.kernel_s, found.add_s) == (2e-6, 1e-6)
    file.write_text(json.dumps(suite() | {"calibration": {"gemm": 0.5}}))
    assert read_suite(file).add_s == Calibration().kernel_s
    file.write_text(json.dumps(suite(kernels=kernels) | {"calibration": {"kernel_s": "short"}}))
    with pytest.raises(ValueError, match="kernel_s='short'"):
        read_suite(file)


def test_a_file_that_is_no_json(tmp_path):
    file = tmp_path / "broken.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"broken.json is not a result"):
        read_suite(file)
    with pytest.raises(ValueError, match=r"nothing.json is not a result"):
        read_suite(tmp_path / "nothing.json")
