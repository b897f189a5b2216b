"""Results do not depend on the number of threads, and regions may be entered from several."""

import threading

import pytest
import torch
from native_cases import LEVELS, _native, kernels_of
from ops_cases import make_case

from sidewinder.ops import native, native_linear
from sidewinder.quantise import quantise


def _everything(seed: int = 3) -> list[torch.Tensor]:
    """Every operator, at sizes that are worth several threads."""
    case = make_case([1, 1, 200], seed)
    tokens, channels, states = case.seqs.n_tokens, 700, 16
    x, z = case.randn(tokens, channels), case.randn(tokens, channels)
    B, weight = case.randn(tokens, states), case.randn(channels, channels)
    A, ssm = -torch.exp(case.randn(states, channels)), case.state(states, channels)
    conv, vector = case.state(3, channels), case.randn(channels)
    heads, ssd = torch.zeros(10, dtype=torch.int64), case.state(10, states, 70)
    ten, slots = case.randn(10), case.seqs.slots
    limit = (0.0, float("inf"))
    grouped = B[:, None]
    return [
        native.causal_conv1d(x, case.randn(4, channels), None, conv, case.seqs),
        native.selective_scan(x, z, A, B, B, vector, z, vector, ssm, case.seqs),
        native.ssd_scan(
            x.view(-1, 10, 70), z[:, :10], -ten.exp(), grouped, grouped, ten, ten, ssd, case.seqs,
            limit, heads,
        ),
        native.rms_norm(x, vector, 1e-5),
        native.gated_rms_norm(x, z, vector, 1e-5, 100),
        *(native_linear.linear(x[:rows], weight.bfloat16()) for rows in (1, 4, 40)),
        *(native_linear.linear(x[:rows], quantise(weight)) for rows in (1, 40)),
        conv[slots], ssm[slots], ssd[slots],
    ]  # fmt: skip


@LEVELS
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(level, threads):
    with kernels_of(level, threads=1):
        expected = _everything()
    with kernels_of(level, threads=threads):
        assert _native.threads() == threads
        for i, (one, many) in enumerate(zip(expected, _everything(), strict=True)):
            assert torch.equal(one, many), f"result {i}"


def test_python_threads_may_call_at_once():
    with kernels_of(_native.isa(), threads=2):
        expected = _everything()
        results: dict[int, list[torch.Tensor]] = {}
        callers = [
            threading.Thread(target=lambda i=i: results.__setitem__(i, _everything()))
            for i in range(3)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert len(results) == 3
    for result in results.values():
        assert all(map(torch.equal, expected, result))


def test_fewer_than_one_thread_is_refused():
    with pytest.raises(ValueError, match="threads=0"):
        native.set_threads(0)
