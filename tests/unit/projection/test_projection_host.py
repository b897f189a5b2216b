"""The host: hidden behind decode steps, waited for where Python launches kernels."""

from dataclasses import replace

import pytest
from projection_cases import IDEAL, setting

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.devices import DEVICES
from sidewinder.projection.model import graph_shape, step_time
from sidewinder.projection.sums import EXACT
from sidewinder.projection.work import Step


def test_the_host_is_hidden_behind_decode_steps_only():
    slow_host = replace(Calibration(), host_s=0.5)
    times = {
        (looks, tokens): step_time(
            setting(1, calibration=slow_host, looks_ahead=looks), Step(tokens, 1, 1), EXACT
        )
        for looks in (True, False)
        for tokens in (1, 64)
    }
    assert times[True, 1].total == pytest.approx(0.5)
    assert times[False, 1].total == pytest.approx(0.5 + sum(times[True, 1].work.values()))
    assert times[True, 64].host == times[False, 64].host == 0.5


def test_a_prefill_step_waits_for_launches_unless_a_graph_holds_it():
    slow = replace(IDEAL, launch_s=1.0)
    per_launch = {
        tokens: step_time(setting(1, calibration=slow), Step(tokens, 1, 1), EXACT).host
        for tokens in (256, 2048, 4096)
    }
    work = step_time(setting(1, calibration=IDEAL), Step(4096, 1, 1), EXACT).work
    assert per_launch[256] == per_launch[2048] == 0
    # Norm, four products, convolution and three kernels of the scan in each layer; seven others.
    assert per_launch[4096] == pytest.approx(64 * 9 + 7 - sum(work.values()))


def test_no_graph_holds_prompts_that_attend_and_no_processor_has_any():
    hybrid = setting(1, config=parse_model_config(SHAPES["zamba-7b"]))
    assert graph_shape(hybrid, Step(256, 1, 1)) is None
    assert graph_shape(setting(1), Step(256, 32, 32)) is None
    assert graph_shape(setting(1), Step(1, 1, 1)) is None
    on_cpu = replace(setting(1), device=replace(DEVICES["a6000"], fuses_scans=False))
    assert graph_shape(on_cpu, Step(256, 1, 1)) is None
    shape = graph_shape(setting(1), Step(250, 2, 2))
    assert shape is not None
    assert shape.tokens == 256


def test_a_graph_cuts_scans_as_if_one_prompt_had_all_rows():
    """It is recorded for prompts of any lengths (`StepShape.longest_bounds`)."""

    def scan(tokens, prompts):
        return step_time(setting(1, gpu="h100"), Step(tokens, prompts, prompts), EXACT).work["scan"]

    assert scan(1024, 7) == pytest.approx(scan(1024, 1), rel=0.05)
    # No graph holds these, and what fills the card together is not cut.
    assert scan(8192, 32) < 0.6 * scan(8192, 1)


def test_a_graph_s_rows_are_those_of_its_shape():
    filled, whole = (step_time(setting(1), Step(n, 1, 1), EXACT) for n in (200, 256))
    assert filled.work == whole.work
