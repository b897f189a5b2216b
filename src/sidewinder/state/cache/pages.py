"""KV pages with counted holders: sequences and kept states share the pages of a prefix."""

from collections import Counter
from collections.abc import Iterable


class PagePool:
    """Hands out the pages `0 .. n_pages-1`; a page is free again when its last holder lets go."""

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self._free = list(reversed(range(n_pages)))
        self._holders: Counter[int] = Counter()

    @property
    def n_free(self) -> int:
        return len(self._free)

    def holders(self, page: int) -> int:
        """How many hold `page`."""
        return self._holders[page]

    def take(self, n_pages: int) -> tuple[int, ...]:
        """So many free pages, each with one holder."""
        assert n_pages <= len(self._free), "the caller makes room first"
        pages = tuple(self._free.pop() for _ in range(n_pages))
        self._holders.update(pages)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each of `pages`, all in use."""
        for page in pages:
            assert self._holders[page] > 0, "a free page cannot be shared"
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One holder less for each of `pages`, given in the order of their text."""
        for page in reversed(list(pages)):
            assert self._holders[page] > 0, "a page is released that nobody holds"
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._free.append(page)
