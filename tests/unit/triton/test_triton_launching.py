"""Dispatch to Triton, launches, 64-bit offsets, and the table of block sizes."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import pytest
import torch
from ops_cases import make_case
from triton_cases import DEVICE, here, launching, tuning

from sidewinder.ops import dispatch
from sidewinder.ops.causal_conv1d import triton as conv
from sidewinder.ops.dispatch import Operator, forced
from sidewinder.ops.selective_scan import triton as scan
from sidewinder.ops.ssd_scan import triton as ssd


@pytest.fixture
def operator(monkeypatch):
    """An operator of its own registry, whose Triton implementation is `launching.blocks`."""
    monkeypatch.setattr(dispatch, "_operators", {})
    made = Operator(
        "probe",
        reference=lambda *_: "reference",
        torch=lambda *_: "torch",
        triton="sidewinder.ops.launching:blocks",
    )
    made.register("native", lambda *_: "native")
    return made


def test_a_gpu_tensor_goes_to_triton_and_never_to_native(operator):
    on_gpu = SimpleNamespace(is_cuda=True, __neg__=None)
    results = {}
    for backend in dispatch.BACKENDS:
        with forced(backend):
            chosen = operator._chosen_for_gpu
            results[backend] = "triton" if chosen.__name__ == "import_and_run" else operator(on_gpu)
    assert results == {
        "reference": "reference", "torch": "torch", "native": "torch", "triton": "triton",
    }  # fmt: skip


def test_a_cpu_tensor_goes_to_triton_only_where_it_is_named_and_interpreted(operator, monkeypatch):
    assert operator(7, 3) == "native"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with forced("triton"):
        assert operator(7, 3) == 3  # blocks(7, 3)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with forced("triton"):
        assert operator(7, 3) == "native"


def test_every_operator_has_one():
    assert {"selective_scan", "gated_squares", "with_scalar", "scaled_rows"} <= set(
        dispatch.available()
    )
    assert all("triton" in backends for backends in dispatch.available().values())


def test_a_recorded_launch_is_not_run():
    state = here(make_case([4], seed=0).state(3, 8))
    before = state.clone()
    x, weight = here(torch.ones(4, 8)), here(torch.ones(4, 8))
    with launching.recording() as launches:
        conv.causal_conv1d(x, weight, None, state, here(make_case([4], seed=0).seqs))
    assert [launch.kernel.__name__ for launch in launches] == ["prefill"]
    assert launches[0].constants["TAPS"] == 4
    assert torch.equal(state.isnan(), before.isnan())


def test_offsets_beyond_32_bits():
    """Slots and rows 2^31 elements apart; only the pages that are written exist."""
    far = 2**31 + 64
    memory = torch.empty(2 * far, dtype=torch.bfloat16, device=DEVICE)
    case = make_case([2], seed=0)
    case.seqs.slots[0] = 1
    seqs = here(case.seqs)

    def both(run, x, *shape):
        """Results with slots and rows that lie apart, and with packed ones."""
        state = here(case.randn(2, *shape, dtype=torch.bfloat16))
        strides = torch.empty(shape).stride()
        apart = memory[128:].as_strided(state.shape, (far, *strides)).copy_(state)
        rows = memory.as_strided(x.shape, (far, *x.stride()[1:])).copy_(x)
        results = run(rows, apart), run(x, state)
        assert torch.equal(*results)
        assert torch.equal(apart[1], state[1])

    x, vector = here(case.randn(2, 16, dtype=torch.bfloat16)), here(case.randn(16))
    weight, rates = here(case.randn(4, 16)), here(-torch.exp(case.randn(2, 16)))
    B = here(case.randn(2, 2))
    both(lambda x, state: conv.causal_conv1d(x, weight, None, state, seqs), x, 3, 16)
    both(
        lambda x, state: scan.selective_scan(
            x, x, rates, B, B, vector, x, vector, state, seqs
        ), x, 2, 16,
    )  # fmt: skip
    group, ones = here(torch.zeros(2, dtype=torch.int64)), here(torch.ones(2))
    both(
        lambda x, state: ssd.ssd_scan(
            x, B, -ones, B[:, None], B[:, None], ones, ones, state, seqs, (0.0, 9.0), group
        ), x.view(2, 2, 8), 2, 2, 8,
    )  # fmt: skip


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty table of block sizes, for a made-up GPU."""
    monkeypatch.setenv(tuning.ENVIRONMENT_VARIABLE, str(tmp_path / "sizes" / "tuning.json"))
    monkeypatch.setattr(tuning, "_gpu", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tuning.table.cache_clear()
    yield tuning.path()
    tuning.table.cache_clear()


CANDIDATES = ({"block": 1}, {"block": 2}, {"block": 3})


def _choose(run=lambda _: None, sizes=(5,)):
    return tuning.choose("probe", sizes, CANDIDATES, run)


def test_measured_sizes_are_kept_for_later_processes(table, monkeypatch):
    assert _choose() == {"block": 1}
    assert not table.exists()
    times = {1: 3.0, 2: 1.0, 3: 2.0}
    monkeypatch.setattr(tuning, "_time", lambda _run, config, _: times[config["block"]])
    with tuning.measuring():
        assert _choose() == {"block": 2}
    times[2] = 9.0
    with tuning.measuring():
        assert _choose() == {"block": 2}  # measured once
    assert json.loads(table.read_text()) == {"GPU|probe|5": {"block": 2}}
    tuning.table.cache_clear()
    assert _choose() == {"block": 2}
    assert _choose(sizes=(6,)) == {"block": 1}


def test_a_kernel_that_cannot_run_is_not_in_the_table(table, monkeypatch):
    """Which says what has run: some kernels are in no step before."""
    monkeypatch.setattr(tuning, "_time", lambda *_: float("inf"))
    with tuning.measuring():
        assert _choose() == {"block": 1}
    assert not table.exists()
    assert not tuning.was_measured("probe")


def test_sizes_that_another_version_measured_are_not_used(table, monkeypatch):
    table.parent.mkdir()
    table.write_text(json.dumps({"GPU|probe|5": {"block": 2, "gone": 1}}))
    assert _choose() == {"block": 1}
    monkeypatch.setattr(tuning, "_time", lambda _run, config, _: -config["block"])
    with tuning.measuring():
        assert _choose() == {"block": 3}
    assert json.loads(table.read_text()) == {"GPU|probe|5": {"block": 3}}


@pytest.mark.usefixtures("table")
def test_a_graph_that_is_being_recorded_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with tuning.measuring():
        assert _choose() == {"block": 1}


@pytest.mark.parametrize("content", ["[", "[]"])
def test_a_broken_table_is_an_error_that_names_the_file(table, content):
    table.parent.mkdir()
    table.write_text(content)
    with pytest.raises(ValueError, match=r"tuning\.json.*delete it"):
        _choose()


def test_overridden_sizes_end():
    with tuning.overridden("probe", block=7):
        assert _choose() == {"block": 7}
    assert _choose() == {"block": 1}


class Hashed:
    """A compiled function, as far as its key goes: which have been hashed, in what order."""

    order: ClassVar[list[str]] = []

    def __init__(self, fn):
        self.fn = fn

    @property
    def cache_key(self):
        Hashed.order.append(self.fn.__name__)
        return self.fn.__name__


def test_what_a_kernel_calls_is_hashed_before_it():
    """`outer` calls `middle` and `inner`, `middle` calls `inner`; each is hashed once."""
    space = {}
    source = "def inner(): ...\ndef middle(): inner()\ndef outer(): middle(); inner(); len([])"
    exec(source, space)
    for name in ("inner", "middle", "outer"):
        space[name] = Hashed(space[name])
    Hashed.order.clear()
    launching.settle_key(space["outer"])
    launching.settle_key(space["middle"])
    assert Hashed.order == ["inner", "middle", "outer"]


KEYS = """
import importlib, sys
from triton.runtime.jit import JITFunction
from sidewinder.ops.launching import settle_key
keys = {}
for operator in sys.argv[1:]:
    module = importlib.import_module(f"sidewinder.ops.{operator}.kernels")
    for name, function in vars(module).items():
        if isinstance(function, JITFunction) and function.fn.__module__ == module.__name__:
            settle_key(function)
            keys[operator, name] = function.cache_key
print(sorted(keys.items()))
"""


def test_kernels_have_the_same_keys_in_any_order():
    """In Triton 3.6 they had not: a helper that was hashed before changed them."""
    operators = ["causal_conv1d", "selective_scan", "projected_scan", "ssd_scan", "codec"]
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = {
        subprocess.run(
            [sys.executable, "-c", KEYS, *order], env=environment, capture_output=True, text=True,
            check=True,
        ).stdout
        for order in (operators, operators[::-1])
    }  # fmt: skip
    assert len(printed) == 1
    assert "chunk_ends" in printed.pop()


@pytest.mark.parametrize(("replay_ms", "replays"), [(0.1, 1 + 15), (5.0, 1 + 5)])
def test_what_takes_long_is_replayed_less_often(monkeypatch, replay_ms, replays):
    """A suite has some minutes for all kernels."""
    seen = []
    monkeypatch.setattr(tuning, "_replay", lambda _: seen.append(1) or replay_ms)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch.zeros(1))
    monkeypatch.setattr(tuning.torch, "cuda", mock.MagicMock())
    assert tuning._time(lambda _: None, {}, ()) == replay_ms
    assert len(seen) == replays
