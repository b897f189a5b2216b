"""The selective scan's Triton kernels against the definition."""

import pytest
import torch
from ops_cases import (
    Case,
    assert_only_columns,
    assert_untouched,
    columns_for,
    cut,
    make_case,
)
from triton_cases import DTYPES, TOLERANCE, here, launching, on_device, overridden

from sidewinder.ops.selective_scan import chunks, reference, triton
from sidewinder.testing import assert_close

SMALL = {"scan_pipelined": {"chunk": 8, "block_d": 16}, "scan_update": {"block_d": 16}}


def _arguments(case: Case, channels: int, states: int, dtype, gated=True, biased=True) -> dict:
    tokens = case.seqs.n_tokens
    return {
        "x": case.strided(tokens, channels, dtype=dtype),
        "dt": case.strided(tokens, channels, dtype=dtype),
        "A": -torch.exp(case.strided(states, channels)),
        "B": case.strided(tokens, states, dtype=dtype),
        "C": case.strided(tokens, states, dtype=dtype),
        "D": case.randn(channels),
        "z": case.strided(tokens, channels, dtype=dtype) if gated else None,
        "dt_bias": case.randn(channels) - 2 if biased else None,
    }


@DTYPES
@pytest.mark.parametrize("into", [False, True], ids=["new", "into columns"])
@pytest.mark.parametrize(
    ("lengths", "channels", "states", "gated", "biased", "state_dtype"),
    [
        ([1, 1], 19, 16, True, True, torch.float32),
        ([1, 3, 21, 8], 9, 5, True, True, torch.float32),
        ([9], 17, 1, False, False, torch.bfloat16),
    ],
    ids=str,
)
def test_scan_is_the_reference(dtype, lengths, channels, states, gated, biased, state_dtype, into):
    case = make_case(lengths, seed=channels)
    arguments = _arguments(case, channels, states, dtype, gated, biased)
    # The state as Zamba passes it: a slice of channels.
    expected_state = case.state(states, channels + 2, dtype=state_dtype)[..., 1:-1]
    state = here(expected_state)
    expected = reference.selective_scan(**arguments, state=expected_state, seqs=case.seqs)
    out = here(columns_for(arguments["x"])) if into else None
    with overridden(**SMALL):
        result = on_device(triton.selective_scan, **arguments, state=state, seqs=case.seqs, out=out)
    assert_close("y", expected, result, TOLERANCE[dtype])
    if out is not None:
        assert torch.equal(out.cpu(), result)
        assert_only_columns(out)
    assert_untouched(case, state.cpu())
    slots = case.seqs.slots
    assert_close("state", expected_state[slots], state.cpu()[slots], TOLERANCE[state_dtype])


def test_default_sizes_are_the_reference():
    """Of prompts around a chunk's length: one uncut in a cut step, the others in many pieces."""
    case = make_case([1, 700, 30, 513], seed=2)
    arguments = _arguments(case, channels=40, states=16, dtype=torch.float32)
    expected_state = case.state(16, 40)
    state = here(expected_state)
    expected = reference.selective_scan(**arguments, state=expected_state, seqs=case.seqs)
    result = on_device(triton.selective_scan, **arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, 1e-5)
    slots = case.seqs.slots
    assert_close("state", expected_state[slots], state.cpu()[slots], 1e-5)


def test_a_sequence_that_is_not_cut_equals_it_in_many_chunks():
    case = make_case([20], seed=1)
    arguments = _arguments(case, channels=9, states=4, dtype=torch.float32)
    results = []
    for chunk in (4, 32):
        state = here(make_case([20], seed=1).state(4, 9))
        with overridden(scan_pipelined={"chunk": chunk, "block_d": 16}):
            y = on_device(triton.selective_scan, **arguments, state=state, seqs=case.seqs)
        results.append((y, state.cpu()[case.seqs.slots]))
    assert_close("y", results[0][0], results[1][0], 1e-6)
    assert_close("state", results[0][1], results[1][1], 1e-6)


@pytest.mark.parametrize("point", [1, 8])
def test_a_scan_cut_at_a_chunk_is_the_whole(point):
    case = make_case([11], seed=point)
    arguments = _arguments(case, channels=5, states=4, dtype=torch.float32)
    state = here(case.state(4, 5))
    state_of_parts = state.clone()
    by_token = ("x", "dt", "B", "C", "z")
    with overridden(**SMALL):
        whole = on_device(triton.selective_scan, **arguments, state=state, seqs=case.seqs)
        parts = []
        rows = slice(0, point), slice(point, None)
        for part, seqs in zip(rows, cut(case, 0, point), strict=True):
            own = {n: v[part] if n in by_token else v for n, v in arguments.items()}
            parts.append(on_device(triton.selective_scan, **own, state=state_of_parts, seqs=seqs))
    assert_close("y", whole, torch.cat(parts), 1e-6)
    slots = case.seqs.slots
    assert_close("state", state.cpu()[slots], state_of_parts.cpu()[slots], 1e-6)


@pytest.mark.parametrize("step", [-1000.0, -40.0, 40.0, 1000.0])
def test_extreme_steps_neither_overflow_nor_vanish(step):
    case = make_case([10], seed=1)
    arguments = _arguments(case, channels=5, states=3, dtype=torch.float32, gated=False)
    arguments["dt"] = torch.full((10, 5), step) + case.randn(10, 5)
    expected_state = case.state(3, 5)
    state = here(expected_state)
    expected = reference.selective_scan(**arguments, state=expected_state, seqs=case.seqs)
    with overridden(**SMALL):
        result = on_device(triton.selective_scan, **arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, TOLERANCE[torch.float32])


@pytest.mark.parametrize("multiprocessors", [84, 108, 132])
@pytest.mark.parametrize("channels", [5120, 8192, 3712, 2560, 16384, 1280, 640])
def test_a_long_prompt_gives_all_schedulers_the_same_work(channels, multiprocessors):
    step = (8192,), channels, multiprocessors
    best = chunks.candidates(*step)[0]
    chunk = chunks.chunk_of(best, *step)
    programs = -(-8192 // chunk) * -(-channels // best["block_d"])
    each = programs / (chunks.SCHEDULERS * multiprocessors)
    assert each % 1 == 0 or each % 1 > 0.75, "a few have one more than the others"
    assert chunks.LEAST_CHUNK <= chunk < 8192


@pytest.mark.parametrize(
    ("lengths", "is_cut"),
    [((8192,), True), ((512,), True), ((40,), False), ((512,) * 32, False), ((256,) * 32, False),
     ((2048,) * 4, True), ((30, 8000), True)],
    ids=str,
)  # fmt: skip
def test_prompts_that_fill_the_card_together_are_not_cut(lengths, is_cut):
    step = lengths, 5120, launching.TYPICAL_MULTIPROCESSORS
    assert (chunks.chunk_of(chunks.candidates(*step)[0], *step) < max(lengths)) == is_cut


def test_whatever_fits_best_all_are_candidates():
    """So that a table of block sizes is not passed over."""
    few, many = (chunks.candidates(lengths, 5120, 132) for lengths in ((40,), (512,) * 32))
    assert few != many
    assert sorted(map(repr, few)) == sorted(map(repr, many)) == sorted(map(repr, chunks.CANDIDATES))


@pytest.mark.parametrize("chunk", [3, 7])
def test_many_chunks_of_any_length_are_the_reference(chunk):
    """More than are passed on at once, of several sequences, beside single tokens."""
    case = make_case([1, 73, 31, 1], seed=chunk)
    arguments = _arguments(case, channels=9, states=4, dtype=torch.float32)
    expected_state = case.state(4, 9)
    state = here(expected_state)
    expected = reference.selective_scan(**arguments, state=expected_state, seqs=case.seqs)
    with overridden(scan_pipelined={"chunk": chunk, "block_d": 16}):
        result = on_device(triton.selective_scan, **arguments, state=state, seqs=case.seqs)
    assert 73 // chunk > triton.PASS_AHEAD
    assert_close("y", expected, result, 1e-5)
    slots = case.seqs.slots
    assert_close("state", expected_state[slots], state.cpu()[slots], 1e-5)
