"""The Triton kernels of routers and experts, against their definitions."""

from dataclasses import fields

import pytest
import torch
from expert_cases import ROUTERS, SIZES, expert_arguments, router_arguments
from triton_cases import DTYPES, TOLERANCE, here, launching, on_device, programs_backwards

from sidewinder.model_config import RouterConfig
from sidewinder.ops.experts import reference, triton
from sidewinder.ops.experts.matrices import FEW_ROWS, MOST_ARRANGED, ExpertMatrices
from sidewinder.ops.route import reference as route_reference
from sidewinder.ops.route import triton as route_triton
from sidewinder.ops.route.triton import MOST_INPUTS
from sidewinder.quantise import BITS, quantise
from sidewinder.testing import assert_close


def on_device_matrices(matrices: ExpertMatrices) -> ExpertMatrices:
    """The same experts on the device under test."""
    parts = {field.name: getattr(matrices, field.name) for field in fields(matrices)}
    return ExpertMatrices(
        **{name: None if part is None else tuple(map(here, part)) for name, part in parts.items()}
    )


@DTYPES
@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (FEW_ROWS, 66), (19, 66)], ids=str)
def test_routes_are_the_references(dtype, name, rows, width):
    arguments = router_arguments(name, rows, width, dtype)
    expected, expected_shares = route_reference.route(**arguments)
    with programs_backwards(rows == FEW_ROWS):
        chosen, shares = on_device(route_triton.route, **arguments)
    assert torch.equal(chosen, expected)
    assert torch.allclose(shares, expected_shares, atol=1e-5)


def test_equal_scores_are_chosen_by_number():
    x, weight = here(torch.ones(2, 3)), here(torch.zeros(40, 3))
    chosen, shares = route_triton.route(x, weight, None, RouterConfig(3))
    assert chosen.tolist() == [[0, 1, 2]] * 2
    assert torch.allclose(shares.cpu(), torch.full((2, 3), 1 / 3))


def test_rows_that_are_no_numbers_choose_experts_that_exist():
    x = here(torch.tensor([[torch.nan, 1.0], [1.0, 1.0]]))
    chosen, shares = route_triton.route(x, here(torch.ones(3, 2)), None, RouterConfig(2))
    assert sorted(chosen[0].tolist()) == [0, 1]
    assert shares[0].isnan().all()
    assert shares[1].tolist() == [0.5, 0.5]


def test_a_long_row_is_scored_piece_by_piece():
    arguments = router_arguments("sigmoid", 2, 2 * MOST_INPUTS + 3, torch.bfloat16)
    arguments["weight"] *= MOST_INPUTS**-0.5  # Else sigmoids are all 0 or 1.
    expected, expected_shares = route_reference.route(**arguments)
    chosen, shares = on_device(route_triton.route, **arguments)
    assert torch.equal(chosen, expected)
    assert torch.allclose(shares, expected_shares, atol=1e-5)


def test_a_few_rows_are_routed_by_two_kernels():
    x, weight = here(torch.ones(FEW_ROWS, 3, dtype=torch.bfloat16)), here(torch.ones(40, 3))
    with launching.recording() as launches:
        route_triton.route(x, weight, None, RouterConfig(3))
    assert [launch.grid for launch in launches] == [(40, FEW_ROWS), (FEW_ROWS,)]


@DTYPES
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 70])
def test_experts_are_the_references(dtype, name, rows):
    arguments = expert_arguments(name, rows, dtype)
    expected = reference.experts(**arguments)
    arguments["matrices"] = on_device_matrices(arguments["matrices"])
    with programs_backwards(rows == 70):
        result = on_device(triton.experts, **arguments)
    assert result.dtype == dtype
    # In groups each expert's term is rounded before they are added.
    assert_close("y", expected, result, 2 * TOLERANCE[dtype])


def test_experts_that_nobody_chose_are_not_read():
    arguments = expert_arguments("gated", 20, torch.float32)
    arguments["chosen"][:] = torch.tensor([4, 1])
    expected = reference.experts(**arguments)
    for parts in (arguments["matrices"].gate, arguments["matrices"].up, arguments["matrices"].down):
        for expert in (0, 2, 3):
            parts[expert].fill_(torch.nan)
    arguments["matrices"] = on_device_matrices(arguments["matrices"])
    for rows in (20, 3):
        some = arguments | {name: arguments[name][:rows] for name in ("x", "chosen", "shares")}
        assert_close("y", expected[:rows], on_device(triton.experts, **some), 1e-5)


def test_launches_know_nothing_of_what_was_chosen():
    arguments = expert_arguments("ungated", 40, torch.float32)
    arguments["matrices"] = on_device_matrices(arguments["matrices"])
    grids = []
    for chosen in (arguments["chosen"], torch.zeros_like(arguments["chosen"])):
        with launching.recording() as launches:
            on_device(triton.experts, **arguments | {"chosen": chosen})
        grids.append([launch.grid for launch in launches])
    assert grids[0] == grids[1] == [(1,), (16, 1), (16, 1)]


@pytest.mark.parametrize("n_experts", [1, 9, 130])
@pytest.mark.parametrize("pairs", [1, 31, 66, MOST_ARRANGED, MOST_ARRANGED + 1])
def test_pairs_lie_in_the_order_of_their_experts(n_experts, pairs):
    generator = torch.Generator().manual_seed(pairs)
    numbers = torch.randint(n_experts, (pairs, 1), generator=generator, dtype=torch.int32)
    starts, order = triton._by_expert(here(numbers), n_experts)
    assert order.tolist() == sorted(range(pairs), key=lambda pair: int(numbers[pair]))
    counts = numbers.flatten().bincount(minlength=n_experts)
    assert starts.tolist() == [0, *counts.cumsum(0).tolist()]


@DTYPES
@pytest.mark.parametrize(
    ("name", "group_size", "bits"),
    [
        ("gated", 32, 8), ("ungated", 64, 8), ("one-of-one", 128, 8), ("all", 32, 8),
        ("all", 128, 8), ("gated", 32, 4), ("ungated", 64, 4), ("one-of-one", 128, 4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [1, FEW_ROWS + 1, 70])
def test_integer_experts_are_the_references(dtype, name, group_size, rows, bits):
    arguments = expert_arguments(name, rows, dtype)
    arguments["matrices"] = in_integers(arguments["matrices"], group_size, bits)
    expected = reference.experts(**arguments)
    arguments["matrices"] = on_device_matrices(arguments["matrices"])
    with programs_backwards(rows == 70):
        result = on_device(triton.experts, **arguments)
    assert result.dtype == dtype
    assert_close("y", expected, result, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_integer_experts_launch_kernels_of_their_own(bits):
    arguments = expert_arguments("gated", 20, torch.bfloat16)
    arguments["matrices"] = on_device_matrices(in_integers(arguments["matrices"], 64, bits))
    names = []
    for rows in (1, 20):
        some = arguments | {name: arguments[name][:rows] for name in ("x", "chosen", "shares")}
        with launching.recording() as launches:
            on_device(triton.experts, **some)
        ours = [launch for launch in launches if launch.kernel.fn.__name__ != "arrange"]
        names += [launch.kernel.fn.__name__ for launch in ours]
        assert all(launch.constants["GROUP"] == 64 for launch in ours)
        assert all(launch.constants["BITS"] == bits for launch in ours)
    assert names == [
        f"integer_{part}" for part in ("pair_inner", "pair_outer", "group_inner", "group_outer")
    ]


def in_integers(matrices: ExpertMatrices, group_size: int, bits: int) -> ExpertMatrices:
    """The same experts, rounded; with their scales in bfloat16, as GPUs have them."""
    parts = (getattr(matrices, field.name) for field in fields(matrices))
    return ExpertMatrices(
        *(
            None if part is None else tuple(quantise(each, group_size, bits) for each in part)
            for part in parts
        )
    )
