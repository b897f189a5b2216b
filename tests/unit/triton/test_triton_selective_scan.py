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


def is_cut(lengths, channels):
    step = lengths, channels, launching.TYPICAL_MULTIPROCESSORS
    return chunks.chunk_of(chunks.candidates(*step)[0], *step) < max(lengths)


def test_where_the_guess_turns():
    """These follow from the counted cycles, and move if one of them does."""
    assert next(first for first in range(8, 300, 8) if is_cut((first,), 5120)) == 216
    for length, channels, prompts in ((512, 5120, 5), (512, 1280, 20), (2048, 5120, 5)):
        cut = [is_cut((length,) * n, channels) for n in range(1, 30)]
        assert cut.index(False) == prompts - 1, (length, channels)
    for lengths, warps in (((65,) * 30 + (4000,), 6), ((1000, *(65,) * 6), 3), ((100,) * 10, 0)):
        assert chunks.candidates(lengths, 5120, 132)[0]["warps"] == warps, lengths
    found = [chunks.candidates((8192,), n, 132)[0]["warps"] for n in (640, 1280, 8192, 16384)]
    assert found == [1, 2, 3, 9]


@pytest.mark.parametrize("lengths", [(40,), (8192,), (512,) * 32], ids=str)
def test_each_way_has_its_width_and_other_widths_come_last(lengths):
    blocks = [(bool(config["warps"]), config["block_d"])
              for config in chunks.candidates(lengths, 5120, 132)]  # fmt: skip
    assert sorted(blocks[:6]) == [(False, 64), *[(True, 128)] * 5]
    assert sorted(blocks[6:]) == [*[(False, 128)], *[(True, 64)] * 5]


def test_chunks_of_more_programs_than_fit_and_of_uncut_steps():
    wide = {"warps": 1, "block_d": 64}
    assert chunks.chunk_of(wide, (1000,), 64 * 600, 1) == 1000
    assert chunks.chunk_of(wide, (600, 400), 64 * 4, 2) == 500
    assert chunks.chunk_of(wide, (600, 401), 64 * 4, 2) == 501
    assert chunks.chunk_of({"warps": 0, "block_d": 64}, (30, 8000, 500), 64, 1) == 8000


@pytest.mark.parametrize(
    ("states", "block", "registers"), [(16, 128, 168), (16, 64, 128), (16, 32, 255), (17, 128, 255)]
)
def test_registers_are_those_that_were_counted(states, block, registers):
    case = make_case([40], seed=1)
    arguments = here(_arguments(case, channels=9, states=states, dtype=torch.float32))
    config = {"chunk": 8, "block_d": block}
    with overridden(scan_pipelined=config), launching.recording() as launches:
        triton.selective_scan(**arguments, state=here(case.state(states, 9)), seqs=here(case.seqs))
    found = {launch.kernel.__name__: launch.options.get("maxnreg") for launch in launches}
    assert found == {"chunk_ends": registers, "pass_states": None, "finish": registers}


@pytest.mark.parametrize(("channels", "multiprocessors"), [(16384, 132), (1280, 132), (1280, 20)])
def test_a_step_is_cut_for_its_channels_and_the_card(channels, multiprocessors):
    lengths, states = (8192, 100), 16
    seqs = make_case(list(lengths), seed=0).seqs
    x, b = (torch.empty(sum(lengths), n, device="meta") for n in (channels, states))
    A, vector = torch.empty(states, channels, device="meta"), torch.empty(channels, device="meta")
    state = torch.empty(4, states, channels, device="meta")
    with launching.recording(launching.Target(90, multiprocessors)) as launches:
        triton.selective_scan(x, x, A, b, b, vector, x, vector, state, seqs)
    step = seqs.prompt_lengths, channels, multiprocessors
    best = chunks.candidates(*step)[0]
    finish = launches[-1]
    given = dict(zip(finish.kernel.arg_names, finish.arguments, strict=False))
    assert given["chunk"] == chunks.chunk_of(best, *step)
    assert finish.constants["BLOCK_D"] == best["block_d"]


@pytest.mark.parametrize(("tokens", "passes"), [(64, 1), (65, 3)])
def test_what_is_not_longer_than_a_chunk_is_one_pass(tokens, passes):
    case = make_case([tokens], seed=1)
    arguments = here(_arguments(case, channels=9, states=4, dtype=torch.float32))
    config = {"chunk": 64, "block_d": 16}
    with overridden(scan_pipelined=config), launching.recording() as launches:
        triton.selective_scan(**arguments, state=here(case.state(4, 9)), seqs=here(case.seqs))
    assert len(launches) == passes


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
