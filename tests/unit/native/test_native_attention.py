"""Attention of single tokens over pages, and of mixed steps, on CPUs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, TOLERANCE, kernels_of
from ops_cases import make_case

from sidewinder.ops import native_attention
from sidewinder.ops.paged_attention import reference
from sidewinder.ops.prompt_attention import reference as prompt_reference
from sidewinder.state.kv_index import KVIndex
from sidewinder.testing import assert_close

PLACES = 400


def arguments_of(lengths, heads, kv_heads, width, seed, dtype=torch.float32, spread=1.0):
    """Sequences of `lengths` tokens, anywhere among places whose others hold NaN."""
    case = make_case([1], seed)
    longest = max(lengths)
    k = torch.full((PLACES, kv_heads, width), torch.nan, dtype=dtype)
    v = k.clone()
    read = torch.full((len(lengths), longest + 2), PLACES - 1)
    for s, length in enumerate(lengths):
        places = torch.randperm(PLACES - 1, generator=case.generator)[:length]
        read[s, :length] = places
        k[places] = case.randn(length, kv_heads, width, dtype=dtype)
        v[places] = case.randn(length, kv_heads, width, dtype=dtype)
    return {
        "q": case.strided(len(lengths), heads, width, dtype=dtype),
        "k": k,
        "v": v,
        "read": read,
        "lengths": torch.tensor(lengths),
        "scale": spread * width**-0.5,
    }


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([1, 8, 16, 29, 64, 130]), st.sampled_from([1.0, 40.0]), st.integers(0, 99),
)  # fmt: skip
def test_is_the_reference(level, dtype, lengths, repeats, kv_heads, width, spread, seed):
    arguments = arguments_of(lengths, repeats * kv_heads, kv_heads, width, seed, dtype, spread)
    expected = reference.paged_attention(**arguments)
    with kernels_of(level):
        result = native_attention.paged_attention(**arguments)
    # A score is rounded relative to its size, and its exponential with it; a sum, relative to what
    # is summed, of which little may be left.
    summed = reference.paged_attention(**arguments | {"v": arguments["v"].abs()}).abs().max()
    error = (result.double() - expected.double()).abs().max()
    assert error <= TOLERANCE[dtype] * max(1.0, spread / 4) * summed


@LEVELS
@DTYPES
def test_heads_of_zamba(level, dtype):
    arguments = arguments_of([65, 128, 3], 4, 4, 464, 1, dtype)
    expected = reference.paged_attention(**arguments)
    with kernels_of(level):
        result = native_attention.paged_attention(**arguments)
    assert_close("y", expected, result, TOLERANCE[dtype])


@LEVELS
def test_neither_batch_nor_threads_change_a_bit(level):
    arguments = arguments_of([200, 1, 77, 64], 6, 3, 40, 5)
    with kernels_of(level):
        together = native_attention.paged_attention(**arguments)
        for s in range(4):
            own = {name: arguments[name][s : s + 1] for name in ("q", "read", "lengths")}
            assert torch.equal(
                native_attention.paged_attention(**(arguments | own))[0], together[s]
            )
    with kernels_of(level, threads=3):
        assert torch.equal(native_attention.paged_attention(**arguments), together)


@LEVELS
def test_a_large_score_late_in_the_text_counts(level):
    """What came before is brought to it, over several blocks of tokens."""
    arguments = arguments_of([190], 1, 1, 16, 2)
    last = arguments["read"][0, 188]
    arguments["k"][last] = 3 * arguments["q"][0]
    expected = reference.paged_attention(**arguments)
    with kernels_of(level):
        result = native_attention.paged_attention(**arguments)
    assert_close("y", expected, result, 3e-6)


@LEVELS
def test_nan_is_not_hidden(level):
    arguments = arguments_of([100], 2, 2, 16, 3)
    arguments["k"][arguments["read"][0, 50], 1] = torch.nan
    with kernels_of(level):
        result = native_attention.paged_attention(**arguments)
    assert result[0, 0].isfinite().all()
    assert result[0, 1].isnan().all()


@LEVELS
@DTYPES
def test_mixed_steps_are_the_reference(level, dtype):
    """Two single tokens, a whole prompt, and the end of one."""
    case = make_case([1], 4)
    lengths, new = [50, 70, 9, 40], [1, 1, 9, 15]
    places = torch.randperm(PLACES, generator=case.generator)[: sum(lengths)].split(lengths)
    bounds = [0, *torch.tensor(new).cumsum(0).tolist()]
    write = torch.cat([own[-n:] for own, n in zip(places, new, strict=True)])
    index = KVIndex(write, tuple(places), tuple(bounds), n_singles=2)
    k, v = (case.randn(PLACES, 2, 24, dtype=dtype) for _ in range(2))
    q = case.strided(bounds[-1], 4, 24, dtype=dtype)
    expected = prompt_reference.prompt_attention(q, k, v, index, 0.3)
    with kernels_of(level):
        result = native_attention.prompt_attention(q, k, v, index, 0.3)
    assert_close("y", expected, result, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": torch.tensor([0, 5])}, "lengths do not fit"),
        ({"lengths": torch.tensor([5, 8])}, "lengths do not fit"),
        ({"read": torch.full((2, 7), PLACES)}, "outside the keys"),
        ({"read": torch.full((2, 7), -1)}, "outside the keys"),
        ({"k": torch.zeros(PLACES, 4, 8)}, "do not divide"),
        ({"v": torch.zeros(PLACES, 2, 8, dtype=torch.bfloat16)}, "dtype of k"),
        ({"v": torch.zeros(PLACES, 1, 8)}, "v"),
    ],
    ids=str,
)
def test_what_would_read_elsewhere_is_refused(changes, message):
    arguments = arguments_of([5, 5], 2, 2, 8, 0) | changes
    if "k" in changes:
        arguments["v"] = changes["k"]
    with pytest.raises(ValueError, match=message):
        native_attention.paged_attention(**arguments)


def test_other_dtypes_are_torchs():
    arguments = arguments_of([5, 9], 2, 2, 8, 0, torch.float16)
    arguments["k"], arguments["v"] = arguments["k"].nan_to_num(), arguments["v"].nan_to_num()
    expected = reference.paged_attention(**arguments)
    assert_close("y", expected, native_attention.paged_attention(**arguments), 2**-9)
