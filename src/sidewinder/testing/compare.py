"""Comparisons of tensors that are not equal to the bit."""

from torch import Tensor


def relative_error(result: Tensor, reference: Tensor) -> float:
    """max|difference| / max|reference|, in float64; NaN if either holds a NaN, 0 where equal."""
    difference = (result.double() - reference.double()).abs().max()
    return 0.0 if difference == 0 else float(difference / reference.double().abs().max())


def assert_close(name: str, reference: Tensor, result: Tensor, tolerance: float) -> None:
    """Fail, naming `name` and the figure, unless `relative_error` is at most `tolerance`."""
    assert result.shape == reference.shape, f"{name}: shape {result.shape} is not {reference.shape}"
    error = relative_error(result, reference)
    assert error <= tolerance, f"{name}: relative error {error:.3g} is above {tolerance:.3g}"
