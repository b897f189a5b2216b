import os
import subprocess
import sys

import pytest
import torch
from native_cases import ALL_LEVELS, LEVELS, _native, kernels_of
from ops_cases import make_case

from sidewinder.ops import dispatch, native, native_linear


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@LEVELS
def test_the_environment_forces_a_level(level):
    result = _run("from sidewinder import _native; print(_native.isa())", SIDEWINDER_ISA=level)
    assert result.stdout.strip() == level, result.stderr


def test_an_unknown_level_is_an_error_that_lists_what_runs_here():
    result = _run("from sidewinder import _native", SIDEWINDER_ISA="sse9")
    assert result.returncode != 0
    assert "SIDEWINDER_ISA=sse9" in result.stderr
    assert "portable" in result.stderr


def test_an_unknown_level_does_not_turn_the_kernels_off():
    result = _run("import sidewinder.ops", SIDEWINDER_ISA="sse9")
    assert "ValueError: SIDEWINDER_ISA=sse9" in result.stderr
    assert "without its native kernels" not in result.stderr


def test_the_best_level_is_the_first_that_runs_here():
    runnable = []
    for level in ALL_LEVELS:
        try:
            with kernels_of(level):
                runnable.append(level)
        except ValueError:
            continue
    result = _run("from sidewinder import _native; print(_native.isa())", SIDEWINDER_ISA="")
    assert result.stdout.strip() == runnable[0]


WITHOUT_NATIVE = """
import sys
sys.modules["sidewinder._native"] = None
import torch
from sidewinder.ops import dispatch, native, native_linear, native_linear
from sidewinder.ops.linear import linear
assert not native.is_available() and native.isa() is None
native.set_threads(2)
print(linear(torch.ones(1, 2), torch.ones(3, 2)).tolist())
print(all("native" not in backends for backends in dispatch.available().values()))
"""


def test_without_the_module_torch_runs_and_says_so_once():
    result = _run(WITHOUT_NATIVE)
    assert result.stdout.split("\n")[:2] == ["[[2.0, 2.0, 2.0]]", "True"], result.stderr
    assert result.stderr.count("without its native kernels") == 1


def test_a_forced_backend_needs_no_warning():
    assert "native kernels" not in _run(WITHOUT_NATIVE, SIDEWINDER_OPS="torch").stderr


def test_native_is_the_default():
    assert all(
        "native" in dispatch.available()[name]
        for name in ("causal_conv1d", "selective_scan", "ssd_scan", "rms_norm", "linear")
    )


def _conv(case, **changes):
    arguments = {
        "x": torch.ones(case.seqs.n_tokens, 8),
        "weight": torch.ones(4, 8),
        "bias": None,
        "state": torch.zeros(case.n_slots, 3, 8),
        "seqs": case.seqs,
    }
    return native.causal_conv1d(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(4, 9)}, r"weight has shape \[ 4 9 \], not \[ \* 8 \]"),
        ({"bias": torch.ones(7)}, "bias has shape"),
        ({"x": torch.ones(5, 8, dtype=torch.float16)}, "element type"),
        ({"x": torch.ones(8, 5).T}, "x is not contiguous"),
        ({"state": torch.zeros(1, 3, 8)}, "sequences do not fit"),
        ({"weight": [1.0]}, "weight is not a tensor"),
    ],
    ids=["shape", "bias", "dtype", "stride", "slots", "type"],
)
def test_arguments_that_do_not_fit_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        _conv(make_case([2, 3], seed=0), **changes)


def test_offsets_beyond_32_bits():
    """Rows and slots 2^31 elements apart; only the pages that are written exist."""
    far = 2**31 + 64
    memory = torch.empty(far + 64, dtype=torch.bfloat16)
    case = make_case([1], seed=0)
    case.seqs.slots[0] = 1
    state = memory.as_strided((2, 3, 8), (far, 8, 1))
    state.copy_(case.randn(2, 3, 8))
    expected_state = state.clone()
    x, weight = case.randn(1, 8, dtype=torch.bfloat16), case.randn(4, 8)
    expected = native.causal_conv1d(x, weight, None, expected_state, case.seqs)
    assert torch.equal(native.causal_conv1d(x, weight, None, state, case.seqs), expected)
    assert torch.equal(state, expected_state)
    rows = memory.as_strided((2, 32), (far, 1))
    rows.copy_(case.randn(2, 32))
    wide = torch.ones(3, 32)
    assert torch.equal(
        native_linear.linear(rows, wide), native_linear.linear(rows.contiguous(), wide)
    )
    assert _native.isa()
