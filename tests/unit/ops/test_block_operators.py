"""The operators of a hybrid's shared block, in torch, against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import make_case

from sidewinder.activations import ACTIVATIONS, IN_CHECKPOINTS, NUMBERS
from sidewinder.ops.add_rows import add_rows
from sidewinder.ops.concat_rms_norm import concat_rms_norm, reference, vectorized
from sidewinder.ops.dispatch import forced
from sidewinder.ops.gated_activation import gated_activation
from sidewinder.ops.gated_activation import reference as gate_reference
from sidewinder.ops.gated_activation import vectorized as gate_vectorized
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.ops.store_kv import reference as store_reference
from sidewinder.ops.store_kv import vectorized as store_vectorized
from sidewinder.testing import assert_close

EACH_ACTIVATION = pytest.mark.parametrize("activation", ACTIVATIONS)


@EACH_ACTIVATION
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 50), st.integers(0, 99), st.sampled_from([1.0, 8.0]))
def test_gated_activation_is_the_reference(activation, tokens, width, seed, spread):
    case = make_case([tokens], seed)
    gate, up = case.strided(tokens, width) * spread, case.strided(tokens, width)
    expected = gate_reference.gated_activation(gate, up, activation)
    result = gate_vectorized.gated_activation(gate, up, activation)
    assert torch.allclose(expected, result, atol=1e-5 * spread)


def test_all_have_the_activations_of_the_one_list():
    assert tuple(gate_reference.FUNCTIONS) == tuple(gate_vectorized.FUNCTIONS) == ACTIVATIONS
    assert set(IN_CHECKPOINTS.values()) == set(ACTIVATIONS)
    assert [ACTIVATIONS[number] for number in NUMBERS.values()] == list(NUMBERS)


def test_the_definitions_are_those_that_checkpoints_mean():
    x, one = torch.linspace(-9, 9, 181)[None], torch.ones(1, 181)
    for name, function in (
        ("gelu", F.gelu),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("relu", F.relu),
        ("silu", F.silu),
    ):
        expected = function(x.double())
        assert_close(name, expected, gate_reference.gated_activation(x, one, name), 1e-6)


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_gates_are_rounded_once(backend):
    case = make_case([1], seed=3)
    gate, up = (case.randn(1, 200, dtype=torch.bfloat16) for _ in range(2))
    expected = (F.gelu(gate.double()) * up.double()).bfloat16()
    assert not torch.equal(expected, F.gelu(gate) * up), "rounded twice it is another"
    with forced(backend):
        assert torch.equal(gated_activation(gate, up, "gelu"), expected)


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_a_sum_of_column_slices_is_contiguous(backend):
    both = torch.randn(3, 10).bfloat16()
    with forced(backend):
        result = add_rows(both[:, :5], both[:, 5:])
    assert torch.equal(result, both[:, :5] + both[:, 5:])
    assert result.is_contiguous()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_concat_rms_norm_is_the_reference(tokens, width, more, seed, added):
    case = make_case([tokens], seed)
    x, beside = case.strided(tokens, width), case.strided(tokens, more)
    weight = case.randn(width + more)
    residual = case.strided(tokens, width) if added else None
    expected = reference.concat_rms_norm(x, beside, weight, 1e-5, residual)
    result = vectorized.concat_rms_norm(x, beside, weight, 1e-5, residual)
    if added:
        (expected, expected_sum), (result, total) = expected, result
        assert torch.equal(expected_sum, total)
    assert torch.allclose(expected, result, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_it_is_the_norm_of_what_was_joined(backend):
    x, residual, beside = (torch.randn(3, 20).bfloat16() for _ in range(3))
    weight = torch.randn(40).bfloat16()
    with forced(backend):
        y, total = concat_rms_norm(x, beside, weight, 1e-5, residual)
        assert torch.equal(total, x + residual)
        assert torch.equal(y, rms_norm(torch.cat([total, beside], dim=1), weight, 1e-5))
        assert torch.equal(y, concat_rms_norm(total, beside, weight, 1e-5))


@pytest.mark.parametrize("store", [store_reference.store_kv, store_vectorized.store_kv])
def test_rows_are_stored_at_their_places_and_nowhere_else(store):
    case = make_case([3], seed=1)
    k, v = case.strided(3, 2, 5), case.strided(3, 2, 5)
    keys, values = (torch.full((7, 2, 5), torch.nan) for _ in range(2))
    places = torch.tensor([6, 0, 3])
    store(k, v, keys, values, places)
    for stored, given_rows in ((keys, k), (values, v)):
        assert torch.equal(stored[places], given_rows)
        assert stored[[1, 2, 4, 5]].isnan().all()
