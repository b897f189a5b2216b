"""Routers and experts on CPUs, against their definitions."""

import math

import pytest
import torch
from expert_cases import ROUTERS, SIZES, expert_arguments, router_arguments

from sidewinder.model_config import RouterConfig
from sidewinder.ops.dispatch import forced
from sidewinder.ops.experts import experts
from sidewinder.ops.experts import reference as experts_reference
from sidewinder.ops.route import reference as route_reference
from sidewinder.ops.route import route
from sidewinder.testing import assert_close

BACKENDS = pytest.mark.parametrize("backend", ["torch", "native"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


@BACKENDS
@DTYPES
@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize(("rows", "width"), [(0, 4), (1, 5), (37, 66)], ids=str)
def test_routes_are_the_references(backend, dtype, name, rows, width):
    arguments = router_arguments(name, rows, width, dtype)
    expected, expected_shares = route_reference.route(**arguments)
    with forced(backend):
        chosen, shares = route(**arguments)
    assert torch.equal(chosen, expected)
    assert shares.shape == expected_shares.shape
    assert torch.allclose(shares, expected_shares, atol=1e-5)


def test_the_definition_of_a_route():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    one, weight = torch.ones(1, 1), logits.T
    softmax = (logits.exp() / logits.exp().sum())[0]
    chosen, shares = route_reference.route(one, weight, None, RouterConfig(2, normalised=False))
    assert chosen.tolist() == [[1, 3]]
    assert torch.allclose(shares[0], softmax[[1, 3]])
    chosen, shares = route_reference.route(one, weight, None, RouterConfig(2, scale=4.0))
    assert torch.allclose(shares[0], 4 * softmax[[1, 3]] / softmax[[1, 3]].sum())
    bias = torch.tensor([9.0, 0.0, 0.0, 0.0])
    biased = RouterConfig(2, scores="sigmoid", has_bias=True, normalised=False)
    chosen, shares = route_reference.route(one, weight, bias, biased)
    assert chosen.tolist() == [[0, 1]]
    assert torch.allclose(shares, logits.sigmoid()[:, [0, 1]]), "the bias is no part of the shares"
    # Groups (0, 1) and (2, 3): the second has the larger sum without its largest being larger.
    grouped = RouterConfig(2, scores="sigmoid", normalised=False, n_groups=2, n_groups_chosen=1)
    chosen, _ = route_reference.route(one, weight, None, grouped)
    assert chosen.tolist() == [[3, 2]]


@BACKENDS
def test_rows_that_are_no_numbers_choose_experts_that_exist(backend):
    x = torch.tensor([[math.nan, 1.0], [1.0, 1.0]])
    with forced(backend):
        chosen, shares = route(x, torch.ones(3, 2), None, RouterConfig(2))
    assert ((chosen >= 0) & (chosen < 3)).all()
    assert shares[0].isnan().all()
    assert shares[1].tolist() == [0.5, 0.5]


@BACKENDS
@DTYPES
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("rows", [1, 2, 9, 50])
def test_experts_are_the_references(backend, dtype, name, rows):
    arguments = expert_arguments(name, rows, dtype)
    expected = experts_reference.experts(**arguments)
    with forced(backend):
        result = experts(**arguments)
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert_close("y", expected, result, {torch.float32: 1e-5, torch.bfloat16: 2**-6}[dtype])


@BACKENDS
def test_no_rows(backend):
    arguments = expert_arguments("gated", 1, torch.float32)
    none = arguments | {name: arguments[name][:0] for name in ("x", "chosen", "shares")}
    with forced(backend):
        assert experts(**none).shape == (0, 24)


def test_the_definition_of_experts():
    arguments = expert_arguments("gated", 2, torch.float32)
    x, matrices, shares = arguments["x"], arguments["matrices"], arguments["shares"]
    expected = torch.zeros(2, 24)
    for row in range(2):
        for j in range(2):
            e = int(arguments["chosen"][row, j])
            assert matrices.gate is not None
            gate = torch.nn.functional.silu(matrices.gate[e] @ x[row])
            expected[row] += shares[row, j] * (
                matrices.down[e] @ (gate * (matrices.up[e] @ x[row]))
            )
    assert_close("y", expected, experts_reference.experts(**arguments), 1e-5)


@BACKENDS
def test_a_row_does_not_depend_on_its_batch(backend):
    arguments = expert_arguments("gated", 9, torch.bfloat16)
    with forced(backend):
        together = experts(**arguments)
        for row in range(9):
            one = slice(row, row + 1)
            alone = {name: arguments[name][one] for name in ("x", "chosen", "shares")}
            assert_close("y", together[one].float(), experts(**arguments | alone).float(), 2**-7)
