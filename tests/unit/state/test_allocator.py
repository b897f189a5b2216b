import pytest

from sidewinder.state.allocator import Allocator


def test_numbers_are_handed_out_once_and_reused():
    allocator = Allocator(3, "state slot")
    assert [allocator.allocate() for _ in range(3)] == [0, 1, 2]
    allocator.free(1)
    assert allocator.n_free == 1
    assert allocator.allocate() == 1


def test_exhausted_names_the_limit():
    allocator = Allocator(1, "KV page")
    allocator.allocate()
    with pytest.raises(RuntimeError, match="no free KV page: all 1 are in use"):
        allocator.allocate()


@pytest.mark.parametrize("number", [0, 7, -1])
def test_freeing_what_is_not_in_use_is_an_error(number):
    allocator = Allocator(2, "state slot")
    allocator.allocate()
    allocator.free(0)
    with pytest.raises(ValueError, match=f"state slot {number} is not in use"):
        allocator.free(number)
