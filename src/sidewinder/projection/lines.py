"""Fixed cost and rate out of measured times."""

from collections.abc import Iterable


def fitted_line(points: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """`a` and `b` of the line `a + b x` that takes measured times best, by relative error.

    Args:
        points: `(x, t)`; at two different x at least.
    """
    # Least squares of (a + x b) / t against 1.
    points = list(points)
    s_aa = sum(1 / t**2 for _, t in points)
    s_ab = sum(x / t**2 for x, t in points)
    s_bb = sum((x / t) ** 2 for x, t in points)
    s_a, s_b = sum(1 / t for _, t in points), sum(x / t for x, t in points)
    determinant = s_aa * s_bb - s_ab**2
    return (s_a * s_bb - s_b * s_ab) / determinant, (s_b * s_aa - s_a * s_ab) / determinant
