"""Pages with counted holders."""

import pytest

from sidewinder.state.cache.pages import PagePool


def test_a_page_is_free_when_the_last_holder_lets_go():
    pool = PagePool(4)
    pages = pool.take(3)
    pool.share(pages[:2])
    pool.release(pages)
    assert pool.n_free == 2
    assert [pool.holders(page) for page in pages] == [1, 1, 0]
    pool.release(pages[:2])
    assert pool.n_free == 4


def test_our_own_mistakes_are_found():
    pool = PagePool(2)
    (page,) = pool.take(1)
    pool.release([page])
    with pytest.raises(AssertionError, match="nobody holds"):
        pool.release([page])
    with pytest.raises(AssertionError, match="free page"):
        pool.share([page])
    with pytest.raises(AssertionError, match="makes room"):
        pool.take(3)
