"""Projected times follow from bytes, operations and links; hand-computed where they can be."""

import json
from dataclasses import replace

import pytest
from projection_cases import BF16, CONFIG, IDEAL, setting

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.collectives.quantised.policy import PhaseCodecs
from sidewinder.ops.codec.formats import CODECS
from sidewinder.projection.calibration import Calibration, read_calibration
from sidewinder.projection.devices import device_of
from sidewinder.projection.links import Link, fitted_link, link_of
from sidewinder.projection.memory import project_memory
from sidewinder.projection.model import Load, prefill_steps, project, step_time
from sidewinder.projection.report import format_projection, projection_report
from sidewinder.projection.sums import EXACT, Wire, policies, sum_times
from sidewinder.projection.timed_kernels import EFFICIENCIES
from sidewinder.projection.work import Step
from sidewinder.sharding.dims import largest_tp

INT8 = PhaseCodecs(CODECS["int8"], CODECS["int8"])


def test_an_ideal_decode_step_takes_its_bytes_over_the_bandwidth():
    speed = project(setting(1, calibration=IDEAL), Load())
    weights = 2 * (CONFIG.vocab_size * CONFIG.d_model + 64 * 2560 * 5120 * 3)
    assert speed.tpot == pytest.approx(weights / 768e9, rel=0.08)


def test_an_ideal_prefill_takes_its_operations_over_the_rate():
    load = Load(batch=1, prompt=8192)
    speed = project(setting(1, "free", calibration=IDEAL), load)
    layer = 3 * 2560 * 5120 + 5120 * 192 + 5120 * 160
    floor = 2 * 8192 * 64 * layer / 154.8e12
    assert floor < speed.ttft < 1.3 * floor, "scan, convolution and norms move bytes besides"


@pytest.mark.parametrize("tp", [2, 4])
def test_free_links_leave_only_replicated_work(tp):
    one, many = (project(setting(n, "free", calibration=IDEAL), Load()) for n in (1, tp))
    assert 0.8 * tp < one.ttft / many.ttft <= tp
    assert 0.9 * tp < one.tpot / many.tpot <= tp


def test_sums_count_the_bytes_of_the_formats():
    wire = Wire(device_of("a6000"), Link("unit", "unit", 1e9, 0), replace(IDEAL))
    step = Step(512, 1, 1)

    def out_proj(ranks, policy):
        times = sum_times(CONFIG, ranks, BF16, step, policy, wire)
        return next(each for each in times if each.name == "out_proj sum")

    size = 512 * 2560 * 2
    assert out_proj(2, EXACT).wire_bytes == size
    assert out_proj(4, EXACT).wire_bytes == 1.5 * size
    assert out_proj(2, INT8).wire_bytes == 512 * 20 * 130
    assert out_proj(4, INT8).wire_bytes == 1.5 * 512 * 20 * 130
    assert out_proj(2, EXACT).seconds == pytest.approx(size / 1e9)
    assert out_proj(2, INT8).seconds > 512 * 20 * 130 / 1e9, "codecs take time, too"


def test_only_deltas_are_quantised():
    wire = Wire(device_of("a6000"), link_of("pcie4"), Calibration())
    for name in ("mamba-2.8b", "zamba-7b", "mamba2-2.7b"):
        config = parse_model_config(SHAPES[name])
        times = sum_times(config, 4, BF16, Step(64, 1, 1), INT8, wire)
        quantised = {each.name for each in times if "int8" in each.algorithm}
        expected = {"out_proj sum"}
        if name == "zamba-7b":
            expected |= {"attention.o sum", "mlp.down sum"}
        assert quantised == expected
        apart = [each for each in times if each.name == "gated norm's squares"]
        assert len(apart) == (name == "mamba2-2.7b")


def test_codecs_pay_for_large_messages_on_slow_links_only():
    """The break-even sizes of the design notes: below 1 MB on PCIe 4, above it on NVLink."""

    def gain(link, tokens):
        wire = Wire(device_of("h100"), link_of(link), Calibration())
        step = Step(tokens, 1, 1)
        exact, int8 = (
            next(
                each.seconds
                for each in sum_times(CONFIG, 4, BF16, step, policy, wire)
                if each.name == "out_proj sum"
            )
            for policy in (EXACT, INT8)
        )
        return exact / int8

    assert gain("pcie4", 1) < 1 < gain("pcie4", 256)
    assert gain("nvlink4", 512) < 1 < gain("nvlink4", 8192)
    assert 1.7 < gain("pcie4", 8192) < 1.97


def test_hidden_sums_are_never_slower_and_bounded_by_free_links():
    load = Load(batch=4)
    plain, hidden = (project(setting(4, hide_sums=hide), load) for hide in (False, True))
    free = project(setting(4, "free"), load)
    assert free.ttft < hidden.ttft < plain.ttft
    assert free.tpot < hidden.tpot < plain.tpot


@pytest.mark.parametrize(
    "name", ["zamba-7b", "zamba2-7b", "bamba-9b", "granite-4.0-h-1b", "jamba-v0.1"]
)
def test_hybrids_hide_no_deltas(name):
    """Their attention sees the whole chunk (`models/parts.py`, `models/zamba.py`)."""
    of = {"config": parse_model_config(SHAPES[name])}
    step = Step(8192, 4, 4, 1024)
    plain, hidden = (
        step_time(setting(4, hide_sums=hide, **of), step, EXACT).sums for hide in (False, True)
    )
    assert hidden | {"x_proj sum": 0} == plain | {"x_proj sum": 0}


def test_prefill_goes_in_steps():
    whole = project(setting(2), Load(prompt=8192, max_step_tokens=8192)).ttft
    parts = project(setting(2), Load(prompt=8192, max_step_tokens=3000)).ttft
    assert whole < parts < 1.2 * whole


def test_every_token_of_many_prompts_is_in_a_step():
    for batch, prompt, most in ((1, 1, 8192), (1, 8192, 8192), (7, 1000, 3000), (3, 100, 64)):
        steps = prefill_steps(Load(batch=batch, prompt=prompt, max_step_tokens=most))
        assert sum(count * step.tokens for count, step in steps) == batch * prompt
        assert all(step.tokens <= most for _, step in steps)


def test_a_load_of_any_size_takes_no_longer():
    many, one = (project(setting(2), Load(batch=n * 2**20, prompt=8192)).ttft for n in (1000, 1))
    assert many == pytest.approx(1000 * one, rel=1e-3)
    with pytest.raises(ValueError, match="--prompt 10000000000000 is too large; use at most"):
        Load(prompt=10**13)


def test_memory_of_the_fullest_rank():
    load = Load(batch=8, prompt=1000, output=24)
    zamba = parse_model_config(SHAPES["zamba-7b"])
    memory = project_memory(setting(2, config=zamba), load)
    assert memory.kv == pytest.approx(8 * 1024 * 386e3 / 2, rel=0.01)
    assert memory.headroom == pytest.approx(
        48 * 2**30
        - sum((memory.weights, memory.state, memory.kv, memory.activations, memory.reserve))
    )


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_and_policy_projects(name):
    config = parse_model_config(SHAPES[name])
    for tp in {1, min(3, largest_tp(config)), min(8, largest_tp(config))}:
        report = projection_report(setting(tp, "nvlink4", "h100", config), Load(batch=2))
        assert json.loads(json.dumps(report)) == report
        assert len(report["policies"]) == (1 if tp == 1 else len(policies(BF16)))
        text = format_projection(report)
        assert "PROJECTED, not measured" in text
        assert "assumed (docs/projection.md): gemm 70 %, " in text
        assert ", kernel 2 us, " in text
        assert ", reserve 1.50 GiB" in text
        for row in report["policies"]:
            assert 0 < row["tpot_s"] < row["ttft_s"]
            assert row["speedup"] <= tp


def test_a_load_that_does_not_fit_says_so():
    config = parse_model_config(SHAPES["falcon-mamba-7b"])
    report = projection_report(setting(1, gpu="l4", config=config), Load(batch=512))
    assert report["memory"]["headroom"] < 0
    assert "does not fit" in format_projection(report)


def test_the_slowest_rank_counts():
    config = parse_model_config(SHAPES["zamba-7b"])  # 16 heads on 3 ranks: 6, 5, 5
    times = step_time(setting(3, config=config), Step(1, 1, 1, 512.0), EXACT)
    even = step_time(setting(4, config=config), Step(1, 1, 1, 512.0), EXACT)
    assert times.work["q"] > even.work["q"]


def test_a_fitted_link_gives_its_own_times_back():
    rows = [{"bytes": size, "median_us": 5 + 3 * size / 2e3} for size in (8, 1000, 10**6)]
    link = fitted_link("x", 4, rows, "here")
    assert link.exchange_s == pytest.approx(5e-6)
    assert link.bytes_per_s == pytest.approx(2e9)


def test_calibration_file(tmp_path):
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({"calibration": {"gemm": 0.9, "kernel_s": 1e-6}}))
    calibration = read_calibration(file)
    assert (calibration.gemm, calibration.memory) == (0.9, Calibration().memory)
    assert calibration.values()["gemm"] == {"value": 0.9, "measured": True}
    text = format_projection(projection_report(setting(2, calibration=calibration), Load()))
    assert f"measured ({file}): gemm, kernel_s" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable calibration"),
        ("{}", "not a readable calibration"),
        ('{"calibration": 3}', "names and numbers"),
        ('{"calibration": {"gem": 1}}', "known: gemm"),
        ('{"calibration": {"gemm": 0}}', "gemm=0"),
        ('{"calibration": {"gemm": "fast"}}', "gemm='fast'"),
    ],
)
def test_broken_calibration_files(tmp_path, content, message):
    file = tmp_path / "calibration.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_calibration(file)


def test_long_scans_take_their_exponentials_twice_where_they_are_cut():
    """0.4 ms for 8,192 tokens of 5,120 channels on an H100."""
    ideal = setting(1, gpu="h100", calibration=IDEAL)
    whole = replace(ideal, device=replace(ideal.device, cuts_scans=False))
    cut, once = (
        step_time(each, Step(8192, 1, 1), EXACT).work["scan"] / 64 for each in (ideal, whole)
    )
    assert cut == pytest.approx(8192 * 5120 * 36 / ideal.device.special_per_s)
    assert once == pytest.approx(cut * 19 / 36)
    decode = [step_time(each, Step(5, 5, 5), EXACT).work["scan"] for each in (ideal, whole)]
    assert decode[0] == decode[1]


def test_devices_that_fuse_a_few_scans_save_their_kernels():
    """Of each layer dt_proj's product; on falcon-mamba also three norms."""
    for name, norms in (("mamba-2.8b", 0), ("falcon-mamba-7b", 3)):
        config = parse_model_config(SHAPES[name])
        fused = setting(1, gpu="h100", config=config)
        apart = replace(fused, device=replace(fused.device, fuses_scans=False))
        fewer, more = (
            sum(step_time(each, Step(4, 4, 4), EXACT).work.values()) for each in (fused, apart)
        )
        costs = fused.calibration
        kernels_s = config.n_layers * (costs.product_s + norms * costs.kernel_s)
        assert 0.9 * kernels_s < more - fewer < 1.5 * kernels_s


def test_fixed_costs_of_products_and_updates():
    """Of a layer's kernels three are products, two small ones, and one or two scan."""
    instant = setting(1, gpu="h100", calibration=replace(IDEAL, **dict.fromkeys(EFFICIENCIES, 1e9)))
    costs = {"kernel_s": 2e-6, "row_s": 3e-6, "product_s": 4e-6, "update_s": 7e-6}
    slow = replace(instant, calibration=replace(instant.calibration, **costs))
    for n, layer_s in ((1, 3 * 3e-6 + 2 * 2e-6 + 7e-6), (5, 4 * 4e-6 + 2 * 2e-6 + 7e-6)):
        work = step_time(slow, Step(n, n, 0), EXACT).work
        outside = sum(work[name] for name in ("embedding", "residual in float32", "final norm"))
        assert sum(work.values()) - outside == pytest.approx(64 * layer_s, rel=0.01)
    late = replace(slow, calibration=replace(slow.calibration, scan=1))
    assert step_time(late, Step(64, 64, 0), EXACT).work["scan"] > 64 * 7e-6


def test_attention_of_single_tokens_has_an_efficiency_of_its_own():
    where = setting(1, gpu="h100", config=parse_model_config(SHAPES["zamba-7b"]), calibration=IDEAL)
    half = replace(where, calibration=replace(IDEAL, attention=0.5))
    for step, times in ((Step(1, 1, 0, 8192.0), 2), (Step(8192, 1, 0, 4096.0), 1)):
        one, other = (step_time(each, step, EXACT).work["attention"] for each in (where, half))
        assert other == pytest.approx(times * one)


@pytest.mark.parametrize(
    ("name", "tokens", "kernels"),
    [
        ("mamba-2.8b", 100, 1),
        ("mamba-2.8b", 513, 3),
        ("mamba2-2.7b", 129, 5),
        ("mamba2-2.7b", 2, 5),
    ],
)
def test_scans_of_prompts_are_several_kernels(name, tokens, kernels):
    config = parse_model_config(SHAPES[name])
    where = setting(1, gpu="h100", config=config, calibration=replace(IDEAL, kernel_s=1.0))
    on_cpu = replace(where, device=replace(where.device, cuts_scans=False))
    for each, expected in ((where, kernels), (on_cpu, 1)):
        scan = step_time(each, Step(tokens, 1, 0), EXACT).work["scan"]
        assert scan == pytest.approx(64 * expected, rel=1e-3)


def test_mamba2s_scan_in_chunks_has_one_efficiency_whatever_bounds_it():
    """Its bytes on an H100; its operations, if memory were ten times as fast."""
    config = parse_model_config(SHAPES["mamba2-2.7b"])
    where = setting(1, gpu="h100", config=config, calibration=IDEAL)
    device = where.device
    faster = replace(where, device=replace(device, bytes_per_s=10 * device.bytes_per_s))
    for each in (where, faster):
        half = replace(each, calibration=replace(IDEAL, ssd=0.5))
        whole, twice = (step_time(a, Step(8192, 1, 0), EXACT).work["scan"] for a in (each, half))
        assert twice == pytest.approx(2 * whole)


def test_squares_travel_apart_in_decode_too_where_only_prefill_is_quantised():
    """A site has one way (`layers/gated_output.py`); only an exact site's squares ride along."""
    where = setting(4, config=parse_model_config(SHAPES["mamba2-2.7b"]))
    in_prefill = PhaseCodecs(CODECS["int8"], None)
    apart, together = (step_time(where, Step(1, 1, 1), each) for each in (in_prefill, EXACT))
    assert "gated norm's squares" in apart.sums
    assert "gated norm's squares" not in together.sums
    assert "squares join the sum" in together.work
    assert "squares join the sum" not in apart.work
