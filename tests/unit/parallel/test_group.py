import pytest

from sidewinder.parallel.group import TensorParallel


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0), (0, -3)])
def test_places_outside_a_group_are_rejected(rank, size):
    with pytest.raises(ValueError, match="tp="):
        TensorParallel(rank, size)
