"""Blocks of a page that programs write."""

import pytest
from page_blocks import fill

PAGE = "before\n<!-- begin a -->\nold\n<!-- end a -->\nafter\n"


def test_a_block_is_replaced_and_the_rest_stays():
    filled = "before\n<!-- begin a -->\none\n\ntwo\n<!-- end a -->\nafter\n"
    assert fill(PAGE, "a", ["one", "", "two"]) == filled


@pytest.mark.parametrize("page", ["", "<!-- begin a -->\nno end\n", PAGE + PAGE])
def test_a_page_without_the_block_once_stays_as_it_is(page):
    with pytest.raises(ValueError, match="begin a"):
        fill(page, "a", ["new"])
