"""Hands out numbered things (state slots, KV pages); plain Python, usable by the scheduler."""


class Allocator:
    """Free list of the numbers `0 .. size-1`; the lowest free number comes first.

    Args:
        size: how many there are.
        what: their name in error messages ("state slot", "KV page").
    """

    def __init__(self, size: int, what: str) -> None:
        assert size >= 0
        self.size = size
        self.what = what
        self._free = list(range(size - 1, -1, -1))
        self._used: set[int] = set()

    @property
    def n_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """A free number, now in use.

        Raises:
            RuntimeError: if all are in use.
        """
        if not self._free:
            raise RuntimeError(f"no free {self.what}: all {self.size} are in use")
        number = self._free.pop()
        self._used.add(number)
        return number

    def free(self, number: int) -> None:
        """Give `number` back.

        Raises:
            ValueError: if it is not in use (freed twice, or never allocated).
        """
        if number not in self._used:
            raise ValueError(f"{self.what} {number} is not in use (of {self.size}); freed twice?")
        self._used.remove(number)
        self._free.append(number)
