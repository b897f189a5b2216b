import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import make_case

from sidewinder.ops.gated_rms_norm import reference as gated_reference
from sidewinder.ops.gated_rms_norm import vectorized as gated_vectorized
from sidewinder.ops.gated_squares import reference as squares_reference
from sidewinder.ops.gated_squares import vectorized as squares_vectorized
from sidewinder.ops.rms_norm import reference, rms_norm, vectorized
from sidewinder.ops.scaled_rows import reference as scaled_reference
from sidewinder.ops.with_scalar import reference as message_reference
from sidewinder.testing import assert_close

SIZES = (st.integers(1, 5), st.integers(1, 50), st.integers(0, 99))


@settings(max_examples=20, deadline=None)
@given(*SIZES, st.booleans(), st.sampled_from([None, torch.float32, torch.bfloat16]))
def test_rms_norm_is_the_reference(tokens, width, seed, weighted, residual_dtype):
    case = make_case([tokens], seed)
    x = case.strided(tokens, width)
    weight = case.randn(width) if weighted else None
    residual = None if residual_dtype is None else case.randn(tokens, width, dtype=residual_dtype)
    expected = reference.rms_norm(x, weight, 1e-5, residual)
    result = vectorized.rms_norm(x, weight, 1e-5, residual)
    if residual is None:
        expected, result = (expected, torch.zeros(1)), (result, torch.zeros(1))
    for name, left, right in zip(("y", "sum"), expected, result, strict=True):
        assert left.dtype == right.dtype
        assert torch.allclose(left.float(), right.float(), atol=1e-6), name


def test_a_float32_residual_keeps_what_bfloat16_would_lose():
    residual = torch.full((1, 4), 1024.0)
    delta = torch.full((1, 4), 0.25, dtype=torch.bfloat16)
    weight = torch.ones(4, dtype=torch.bfloat16)
    y, total = rms_norm(delta, weight, 1e-5, residual)
    assert y.dtype == torch.bfloat16
    assert total.dtype == torch.float32
    assert total[0, 0] == 1024.25


@settings(max_examples=20, deadline=None)
@given(*SIZES, st.integers(1, 4), st.booleans())
def test_gated_rms_norm_is_the_reference(tokens, group_size, seed, groups, norm_before_gate):
    case = make_case([tokens], seed)
    width = groups * group_size
    x, z = case.strided(tokens, width), case.strided(tokens, width)
    arguments = (x, z, case.randn(width), 1e-5, group_size, norm_before_gate)
    expected = gated_reference.gated_rms_norm(*arguments)
    result = gated_vectorized.gated_rms_norm(*arguments)
    assert torch.allclose(expected, result, atol=1e-5)


@pytest.mark.parametrize("norm", [gated_reference.gated_rms_norm, gated_vectorized.gated_rms_norm])
def test_groups_are_normalised_on_their_own(norm):
    x, z, weight = torch.randn(3, 12), torch.randn(3, 12), torch.randn(12)
    whole = norm(x, z, weight, 1e-5, 4)
    alone = [norm(x[:, part], z[:, part], weight[part], 1e-5, 4)
             for part in (slice(0, 4), slice(4, 8), slice(8, 12))]  # fmt: skip
    assert_close("y", torch.cat(alone, dim=1), whole, 1e-6)


def test_a_cut_group_is_refused():
    with pytest.raises(AssertionError, match="cut between ranks"):
        gated_vectorized.gated_rms_norm(
            torch.ones(1, 6), torch.ones(1, 6), torch.ones(6), 1e-5, group_size=4
        )


@settings(max_examples=20, deadline=None)
@given(*SIZES, st.booleans())
def test_gated_squares_are_the_reference(tokens, width, seed, norm_before_gate):
    case = make_case([tokens], seed)
    arguments = (case.strided(tokens, width), case.strided(tokens, width), case.randn(width))
    expected = squares_reference.gated_squares(*arguments, norm_before_gate)
    for one, other in zip(
        expected, squares_vectorized.gated_squares(*arguments, norm_before_gate), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_gated_squares_and_their_scale_are_the_norm_of_one_group(norm_before_gate):
    case = make_case([5], seed=3)
    x, z, weight = case.randn(5, 24), case.randn(5, 24), case.randn(24)
    expected = gated_reference.gated_rms_norm(x, z, weight, 1e-5, 24, norm_before_gate)
    u, squares = squares_reference.gated_squares(x, z, weight, norm_before_gate)
    result = scaled_reference.scaled_rows(u, squares / 24, 1e-5)
    assert_close("y", expected, result, 1e-6)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_summed_messages_are_the_sum_and_its_scale(dtype, ranks):
    """Columns of each rank's own, zero in others' messages, so that only partials are rounded."""
    case = make_case([5], seed=ranks)
    partials = [case.strided(5, 7, dtype=dtype) for _ in range(ranks)]
    squares = [case.randn(5, 1).square() * 9 for _ in range(ranks)]
    messages = [
        message_reference.with_scalar(partial, square, 24, rank, ranks)
        for rank, (partial, square) in enumerate(zip(partials, squares, strict=True))
    ]
    total = torch.stack(messages).float().sum(0)
    columns = message_reference.scalar_columns(dtype, ranks)
    assert {each.shape for each in messages} == {(5, 7 + columns)}
    if dtype != torch.float32:
        assert torch.equal(total[:, 7:], total[:, 7:].to(dtype).float()), "no part is rounded"
        assert sum((each[:, 7:] != 0).sum() for each in messages) <= 5 * columns
    root = (sum(square.double() for square in squares) / 24 + 1e-5).sqrt()
    result = scaled_reference.scaled_rows(total[:, :7], total[:, 7:], 1e-5)
    assert_close("y", sum(each.double() for each in partials) / root, result, 1e-5)
