"""Cutting a range into shares, one per rank, at multiples of a unit. Plain arithmetic."""

from dataclasses import dataclass
from itertools import pairwise

CHANNEL_UNITS = (64, 32, 16, 8, 4, 2, 1)
"""Candidate channel blocks, widest first: whole cache lines and vector registers are fastest."""

UNITS_FOR_BALANCE = 16
"""Units per rank above which one unit more or less (at most 1/16) hardly unbalances the ranks."""


@dataclass(frozen=True)
class Share:
    """The half-open range `[start, stop)` that a rank owns of something."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def split_units(n_units: int, parts: int, unit: int = 1) -> tuple[Share, ...]:
    """Cut `n_units` units of `unit` elements into `parts` shares; the first may have one more."""
    each, extra = divmod(n_units, parts)
    edges = [unit * (each * part + min(part, extra)) for part in range(parts + 1)]
    return tuple(Share(start, stop) for start, stop in pairwise(edges))


def channel_unit(n_channels: int, parts: int) -> int:
    """Block of channels in which `n_channels` are dealt to `parts` ranks.

    The widest of `CHANNEL_UNITS` that divides `n_channels` and leaves the ranks balanced: either
    every rank gets the same number of units, or each gets at least `UNITS_FOR_BALANCE`. Tiny models
    end at single channels, which always work.
    """
    for unit in CHANNEL_UNITS:
        n_units, remainder = divmod(n_channels, unit)
        if remainder == 0 and (n_units % parts == 0 or n_units >= UNITS_FOR_BALANCE * parts):
            return unit
    return 1


def split_channels(n_channels: int, parts: int) -> tuple[Share, ...]:
    """Shares of `n_channels` channels in blocks of `channel_unit`."""
    unit = channel_unit(n_channels, parts)
    return split_units(n_channels // unit, parts, unit)
