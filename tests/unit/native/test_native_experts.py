"""Routers and experts in C++, against their definitions, on every level that this processor has."""

import pytest
import torch
from expert_cases import ROUTERS, SIZES, expert_arguments, router_arguments
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, TOLERANCE, _native, _runs_here, kernels_of
from ops_cases import make_case

from sidewinder.activations import ACTIVATIONS
from sidewinder.model_config import RouterConfig
from sidewinder.ops import native_linear
from sidewinder.ops.experts import reference
from sidewinder.ops.experts.matrices import ExpertMatrices
from sidewinder.ops.route import reference as route_reference
from sidewinder.packing import pack
from sidewinder.quantise import quantise
from sidewinder.testing import assert_close

PACKED = {"avx512_bf16": (16, 8, 4), "avx512": (8, 4), "avx2": (8, 4)}
"""By level: bits of the weights that it reads packed."""


def each(matrices, change):
    """All matrices, changed."""
    gate, up, down = (
        None if part is None else tuple(change(matrix) for matrix in part)
        for part in (matrices.gate, matrices.up, matrices.down)
    )
    assert up is not None
    assert down is not None
    return ExpertMatrices(gate, up, down)


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(st.sampled_from(sorted(ROUTERS)), st.integers(1, 20), st.integers(1, 80))
def test_routes_are_the_references(level, dtype, name, rows, width):
    arguments = router_arguments(name, rows, width, dtype)
    expected, expected_shares = route_reference.route(**arguments)
    with kernels_of(level):
        chosen, shares = native_linear.route(**arguments)
    assert torch.equal(chosen, expected)
    assert torch.allclose(shares, expected_shares, atol=2e-6, rtol=1e-5)


@LEVELS
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_large_logits_equal_scores_and_endless_biases(level, scores):
    x = torch.eye(3)
    weight = torch.tensor([[200.0, 1.0, 0.0], [-200.0, 1.0, 0.0], [199.0, 1.0, 0.0]])
    config = RouterConfig(2, scores=scores, has_bias=True)
    bias = torch.tensor([0.0, 0.0, -torch.inf])
    with kernels_of(level):
        chosen, shares = native_linear.route(x, weight, bias, config)
        everyone, _ = native_linear.route(x, weight, None, RouterConfig(3, scores=scores))
    assert chosen.tolist() == [[0, 1]] * 3
    assert torch.allclose(shares, torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]), atol=1e-6)
    assert everyone.tolist() == [[0, 2, 1], [0, 1, 2], [0, 1, 2]]


NEVER = -torch.inf
EDGES = {
    "the largest logit is not the first": (
        [0.0, 300.0, 299.0], None, RouterConfig(2, normalised=False),
    ),
    "scores of zero have shares of zero": ([-200.0, -300.0], None, RouterConfig(1, "sigmoid")),
    "no group has two experts": (
        [1.0] * 6, [NEVER, NEVER, 0.0, NEVER, 0.0, NEVER],
        RouterConfig(2, "sigmoid", n_groups=3, n_groups_chosen=1),
    ),
    "groups of one": (
        [0.1, 0.9, 0.5, 0.7], None, RouterConfig(2, "sigmoid", n_groups=4, n_groups_chosen=2),
    ),
}  # fmt: skip


@LEVELS
@pytest.mark.parametrize("name", EDGES)
def test_edges_of_routes_are_the_references(level, name):
    logits, bias, config = EDGES[name]
    x, weight = torch.ones(1, 1), torch.tensor(logits)[:, None]
    bias = None if bias is None else torch.tensor(bias)
    expected, expected_shares = route_reference.route(x, weight, bias, config)
    with kernels_of(level):
        chosen, shares = native_linear.route(x, weight, bias, config)
    assert expected_shares.isfinite().all()
    assert chosen.tolist() == expected.tolist()
    torch.testing.assert_close(shares, expected_shares, rtol=1e-5, atol=1e-30)


@LEVELS
@DTYPES
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_experts_are_the_references(level, dtype, name, rows, threads):
    arguments = expert_arguments(name, rows, dtype)
    with kernels_of(level, threads):
        result = native_linear.experts(**arguments)
    # Each expert's product is rounded, and then the sum.
    tolerance = 2 * TOLERANCE[dtype]
    assert_close("y", reference.experts(**arguments), result, tolerance)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize(("level", "bits"), [(each, n) for each in PACKED for n in PACKED[each]])
def test_packed_matrices(rows, level, bits, threads):
    if not _runs_here(level):
        pytest.skip(f"this processor has no {level}")
    arguments = expert_arguments("all", rows, torch.bfloat16)
    rounded = each(arguments["matrices"], lambda w: w if bits == 16 else quantise(w, 32, bits))
    expected = reference.experts(**arguments | {"matrices": rounded})
    with kernels_of(level, threads):
        result = native_linear.experts(**arguments | {"matrices": each(rounded, pack)})
    # Beside int4 rows have 8 bits: both products add an error of 2^-8 of their largest inputs.
    assert_close("y", expected, result, 2**-5 if bits == 4 else 2**-6)


@LEVELS
@pytest.mark.parametrize("bits", [8, 4])
def test_matrices_of_integers(level, bits):
    arguments = expert_arguments("gated", 9, torch.float32)
    arguments["matrices"] = each(arguments["matrices"], lambda w: quantise(w, 32, bits))
    with kernels_of(level):
        result = native_linear.experts(**arguments)
    assert_close("y", reference.experts(**arguments), result, 2e-4)


@LEVELS
def test_a_row_does_not_depend_on_the_batch_around_it(level):
    arguments = expert_arguments("all", 40, torch.bfloat16)
    with kernels_of(level, threads=2):
        together = native_linear.experts(**arguments)
        for row in (0, 17, 39):
            one = slice(row, row + 1)
            alone = {name: arguments[name][one] for name in ("x", "chosen", "shares")}
            assert torch.equal(together[one], native_linear.experts(**arguments | alone))


@LEVELS
def test_what_is_no_number_stays_in_its_row(level):
    arguments = expert_arguments("gated", 6, torch.float32)
    with kernels_of(level):
        clean = native_linear.experts(**arguments)
        arguments["x"][2, 3] = torch.nan
        result = native_linear.experts(**arguments)
        config, weight = RouterConfig(2), make_case([1], 0).randn(5, 24)
        chosen, shares = native_linear.route(arguments["x"], weight, None, config)
    assert result[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(result[others], clean[others])
    assert chosen[2].tolist() == [0, 1]
    assert shares[2].isnan().all()
    assert shares[others].isfinite().all()


def test_an_expert_that_a_row_has_twice_is_refused():
    arguments = expert_arguments("gated", 3, torch.float32)
    arguments["chosen"][:] = torch.tensor([0, 1])
    native_linear.experts(**arguments)
    arguments["chosen"][2] = 1
    with pytest.raises(ValueError, match="chosen: an expert twice for one row"):
        native_linear.experts(**arguments)


@pytest.mark.parametrize("expert", [-1, 5])
def test_an_expert_that_does_not_exist_is_refused(expert):
    arguments = expert_arguments("gated", 3, torch.float32)
    arguments["chosen"][1, 1] = expert
    with pytest.raises(ValueError, match="chosen: no such expert"):
        native_linear.experts(**arguments)


@pytest.mark.parametrize("activation", [-1, len(ACTIVATIONS)])
def test_an_activation_that_does_not_exist_is_refused(activation):
    up, down = [(torch.ones(3, 4), None, 32, 8)], [(torch.ones(4, 3), None, 32, 8)]
    one = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1)
    matrices, x = _native.ExpertSet(None, up, down, 4, 3, False), torch.ones(1, 4)
    with pytest.raises(ValueError, match="activation: 0 to 3"):
        _native.experts(x, matrices, *one, activation, torch.empty(1, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 2}, "chosen: more than the experts, or broken groups"),
        ({"groups_chosen": 2}, "chosen: more than"),
        ({"groups": 0}, "chosen: more than"),
        ({"weight": torch.ones(3, 4).bfloat16()}, "weight is bfloat16, not float32"),
        ({"bias": torch.ones(2)}, "bias has shape"),
        ({"chosen": torch.ones(2, 4, dtype=torch.int32)}, "shares has shape"),
        (
            {"chosen": torch.ones(2, 4, dtype=torch.int32), "shares": torch.ones(2, 4)},
            "chosen: more than",
        ),
    ],
    ids=str,
)
def test_routes_that_do_not_fit_are_refused(changes, message):
    arguments = {
        "x": torch.ones(2, 4), "weight": torch.ones(3, 4), "bias": None, "softmax": True,
        "normalised": True, "scale": 1.0, "least_sum": 0.0, "groups": 1, "groups_chosen": 1,
        "chosen": torch.ones(2, 2, dtype=torch.int32), "shares": torch.ones(2, 2),
    }  # fmt: skip
    _native.route(**arguments)
    with pytest.raises(ValueError, match=message):
        _native.route(**arguments | changes)


def test_sets_that_do_not_fit_are_refused():
    up, down = [(torch.ones(3, 4), None, 32, 8)], [(torch.ones(4, 3), None, 32, 8)]
    _native.ExpertSet(None, up, down, 4, 3, False)
    for parts, message in (
        ((None, up, down * 2, 4, 3), "different numbers of experts"),
        ((up * 2, up, down, 4, 3), "different numbers of experts"),
        ((None, down, up, 4, 3), "weight has shape"),
        ((None, up, down, 4, 2), "weight: outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            _native.ExpertSet(*parts, False)
