"""The causal convolution's Triton kernels against the definition."""

import pytest
import torch
from ops_cases import assert_untouched, make_case
from triton_cases import DTYPES, TOLERANCE, here, on_device, overridden

from sidewinder.ops.causal_conv1d import reference, triton
from sidewinder.state.batch import pack
from sidewinder.testing import assert_close


@DTYPES
@pytest.mark.parametrize(
    ("lengths", "channels", "taps", "biased", "activation"),
    [
        ([1, 1, 1], 70, 4, True, True),
        ([1, 2, 21, 3], 9, 4, True, True),
        ([17, 1], 33, 2, False, False),
        ([5, 1], 6, 1, True, True),
        ([1, 2, 4, 9], 12, 6, False, True),
    ],
    ids=str,
)
def test_conv_is_the_reference(dtype, lengths, channels, taps, biased, activation):
    case = make_case(lengths, seed=channels)
    x = case.strided(case.seqs.n_tokens, channels, dtype=dtype)
    weight = case.randn(taps, channels, dtype=dtype)
    bias = case.randn(channels, dtype=dtype) if biased else None
    expected_state = case.state(taps - 1, channels, dtype=dtype)
    state = here(expected_state)
    arguments = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "seqs": case.seqs,
        "activation": activation,
    }
    expected = reference.causal_conv1d(**arguments, state=expected_state)
    with overridden(
        conv_prefill={"block_t": 8, "rows": 4, "block_c": 16}, conv_update={"block_c": 32}
    ):
        result = on_device(triton.causal_conv1d, **arguments, state=state)
    assert_close("y", expected, result, TOLERANCE[dtype])
    if taps > 1:
        assert_untouched(case, state.cpu())
        assert torch.equal(expected_state[case.seqs.slots], state.cpu()[case.seqs.slots])


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_conv_in_chunks_is_the_whole(chunk):
    case = make_case([10], seed=1)
    x, weight = case.randn(10, 20), case.randn(4, 20)
    state = here(case.state(3, 20))
    state_of_parts = state.clone()

    def run(x, state, seqs):
        return on_device(
            triton.causal_conv1d, x=x, weight=weight, bias=None, state=state, seqs=seqs
        )

    whole = run(x, state, case.seqs)
    parts = []
    for start in range(0, 10, chunk):
        part = x[start : start + chunk]
        slot, fresh = int(case.seqs.slots[0]), bool(case.seqs.fresh[0])
        seqs = pack([[0] * len(part)], [slot], [0 if fresh and start == 0 else 1]).seqs
        parts.append(run(part, state_of_parts, seqs))
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(state.cpu()[case.seqs.slots], state_of_parts.cpu()[case.seqs.slots])
