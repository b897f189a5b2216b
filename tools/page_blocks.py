"""The parts of a page that programs write, from `<!-- begin NAME -->` to `<!-- end NAME -->`."""

import re
from collections.abc import Iterable


def fill(page: str, name: str, lines: Iterable[str]) -> str:
    """`page` with the block `name` replaced by `lines`; nothing else of it changes.

    Raises:
        ValueError: unless the page has that block, once.
    """
    block = "\n".join([f"<!-- begin {name} -->", *lines, f"<!-- end {name} -->"])
    pattern = re.compile(f"<!-- begin {name} -->.*?<!-- end {name} -->", re.DOTALL)
    filled, count = pattern.subn(lambda _: block, page)
    if count != 1:
        raise ValueError(f"the page has {count} blocks '<!-- begin {name} -->', not one")
    return filled
