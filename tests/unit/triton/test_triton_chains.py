"""Chains of drafts in Triton: against the definitions, and as steps one after another."""

from dataclasses import replace

import pytest
import torch
from chain_cases import CHANNELS, OPERATORS, SMALL, make_chains
from triton_cases import DTYPES, TOLERANCE, here, launching, overridden, programs_backwards

from sidewinder.ops.causal_conv1d import triton as conv_triton
from sidewinder.ops.dispatch import forced
from sidewinder.ops.projected_scan import parts
from sidewinder.state.batch import pack
from sidewinder.testing import assert_close

LOADS = [
    {"lengths": [3, 1, 5, 2]},
    {"lengths": [1, 4], "n_padding": 3, "n_empty": 2},
    {"lengths": [2, 3], "prompts": [9, 2]},
]
OPTIONS = [
    ("conv", {}, torch.float32),
    ("scan", {}, torch.float32),
    ("scan", {"gated": False, "biased": False}, torch.bfloat16),
    ("projected", {}, torch.float32),
    ("projected", {"eps": 1e-6, "weighted": True, "gated": False}, torch.bfloat16),
    ("projected", {"eps": 1e-6}, torch.float32),
    ("ssd", {}, torch.float32),
    ("ssd", {"dt_limit": (0.05, 0.4)}, torch.bfloat16),
]


@DTYPES
@pytest.mark.parametrize("load", LOADS, ids=str)
@pytest.mark.parametrize(("name", "options", "state_dtype"), OPTIONS, ids=str)
def test_chains_are_the_reference(name, options, state_dtype, load, dtype):
    operator, case = OPERATORS[name], make_chains(seed=3, **load)
    state_dtype = dtype if name == "conv" else state_dtype
    arguments, expected_state = operator.both(case, dtype, state_dtype, **options)
    state = expected_state.clone()
    # The definition goes on from what it read out of the slot before, rounded as that is.
    expected = operator.reference(**arguments, state=expected_state, seqs=case.seqs)
    with overridden(**SMALL):
        result = operator.run(arguments, state, case.seqs)
    assert_close("y", expected, result, TOLERANCE[dtype])
    written = torch.zeros(case.n_slots, dtype=torch.bool)
    written[case.seqs.slots] = True
    assert state[~written].isnan().all(), "a slot outside the batch was written"
    allowed = max(TOLERANCE[dtype], TOLERANCE[state_dtype])
    assert_close("state", expected_state[written], state[written], allowed)


@DTYPES
@pytest.mark.parametrize("taps", [1, 2, 6])
def test_convolutions_of_other_lengths(taps, dtype):
    operator = replace(OPERATORS["conv"], state_shape=(taps - 1, CHANNELS))
    case = make_chains([3, 1, 8], seed=taps)
    options = {"taps": taps, "biased": False, "activation": False}
    arguments, expected_state = operator.both(case, dtype, dtype, **options)
    state = expected_state.clone()
    expected = operator.reference(**arguments, state=expected_state, seqs=case.seqs)
    with overridden(**SMALL):
        result = operator.run(arguments, state, case.seqs)
    assert_close("y", expected, result, TOLERANCE[dtype])
    assert torch.equal(expected_state[case.seqs.slots], state[case.seqs.slots])


@pytest.mark.skipif(not launching.is_interpreting(), reason="a compiler fuses as it likes")
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_drafts_are_as_steps_one_after_another(name, dtype, state_dtype):
    """The same bits: a state that drafts go on from is rounded as if it had been stored."""
    operator, case = OPERATORS[name], make_chains([3, 1], seed=5)
    state_dtype = dtype if name == "conv" else state_dtype
    arguments, state = operator.both(case, dtype, state_dtype)
    plain, seqs = state.clone(), case.seqs
    with overridden(**SMALL):
        result = operator.run(arguments, state, seqs)
        for row in range(seqs.n_tokens):
            slot = int(seqs.slots[row])
            plain[slot] = plain[int(seqs.sources[row])]
            own = {
                key: value[row : row + 1] if key in ("x", "dt", "B", "C", "z", "low") else value
                for key, value in arguments.items()
            }
            step = pack([[0]], [slot], [0 if seqs.fresh[row] else 1]).seqs
            assert torch.equal(operator.run(own, plain, step)[0], result[row])
    torch.testing.assert_close(plain, state, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not launching.is_interpreting(), reason="a GPU has its own order")
@pytest.mark.parametrize("name", OPERATORS)
def test_results_do_not_depend_on_the_order_of_programs(name):
    """A chain reads its slot and writes it: no other program may do either."""
    results = []
    for backwards in (False, True):
        operator, case = OPERATORS[name], make_chains([1, 4], seed=6, n_padding=2, n_empty=1)
        arguments, state = operator.both(case, torch.float32, torch.float32)
        with overridden(**SMALL), programs_backwards(backwards):
            results.append((operator.run(arguments, state, case.seqs), state))
    for forth, back in zip(*results, strict=True):
        torch.testing.assert_close(forth, back, rtol=0, atol=0, equal_nan=True)


def launched(name, lengths):
    operator, case = OPERATORS[name], make_chains(lengths, seed=7)
    arguments, state = operator.both(case, torch.float32, torch.float32)
    with forced("triton"), launching.recording() as launches:
        operator.triton(**here(arguments), state=here(state), seqs=here(case.seqs))
    return [(each.kernel.__name__, each.grid[0]) for each in launches]


@pytest.mark.parametrize("name", OPERATORS)
def test_a_step_with_drafts_is_one_launch_of_one_program_a_chain(name):
    assert launched(name, [5, 1, 3]) == [("update_chains", 3)]


def test_many_chains_go_by_parts():
    """A few, however many rows they have, read dt_proj's weight a few times only."""
    most = parts.MOST_FUSED
    assert launched("projected", [3] * most) == [("update_chains", most)]
    (scan,) = [each for each in launched("projected", [2] * (most + 1)) if "chains" in each[0]]
    assert scan == ("update_chains", most + 1)


def test_waves_are_refused():
    seqs = pack([[0], [0]], [0, 1], [1, 1], sources=[0, 0], waves=(1,)).seqs
    x = torch.zeros(2, 4)
    with pytest.raises(AssertionError, match="chains"):
        conv_triton.causal_conv1d(x, torch.ones(2, 4), None, torch.zeros(2, 1, 4), seqs)
    chains = make_chains([2], seed=1).seqs
    with pytest.raises(AssertionError, match="Triton"):
        _ = chains.single_tokens
