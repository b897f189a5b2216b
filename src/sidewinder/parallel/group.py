"""Who a rank is: the one object that carries rank and size, passed explicitly."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorParallel:
    """One rank of a tensor-parallel group.

    Args:
        rank: this rank's index, `0 <= rank < size`.
        size: number of ranks (`tp`), at least 1.

    Raises:
        ValueError: if rank or size is out of range.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"tp={self.size} is not a group size; use 1 or more ranks")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is outside a group of tp={self.size} ranks")


SINGLE = TensorParallel(0, 1)
