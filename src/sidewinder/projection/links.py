"""What carries messages between ranks: a fixed cost per exchange, and a rate (alpha and beta).

An exchange is one round in which every rank writes to, or reads from, all others and knows that
they are done. Rates are of one rank in one direction, as a good kernel reaches them, not the
connector's; all are assumed until a machine with several GPUs has been measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidewinder.projection.lines import fitted_line


@dataclass(frozen=True)
class Link:
    """How ranks are joined.

    Attributes:
        name: as users write it.
        title: what it is.
        bytes_per_s: of one rank in one direction.
        exchange_s: fixed cost of one exchange.
        source: where the two figures come from.
    """

    name: str
    title: str
    bytes_per_s: float
    exchange_s: float
    source: str = "assumed"


LINKS = {
    name: Link(name, title, gb_per_s * 1e9, microseconds * 1e-6)
    for name, title, gb_per_s, microseconds in (
        ("pcie3", "PCIe 3 x16, peer to peer", 10, 9),
        ("pcie4", "PCIe 4 x16, peer to peer", 20, 8),
        ("pcie5", "PCIe 5 x16, peer to peer", 42, 7),
        ("nvbridge", "NVLink bridge of two RTX A6000", 45, 5),
        ("nvlink3", "NVLink 3 (A100, all to all)", 235, 4),
        ("nvlink4", "NVLink 4 (H100, H200, all to all)", 360, 4),
        ("nvlink5", "NVLink 5 (B200, all to all)", 720, 4),
        ("eth10", "10 Gb/s Ethernet", 1.1, 60),
        ("eth100", "100 Gb/s Ethernet with RDMA", 11, 20),
        ("ib400", "InfiniBand NDR, 400 Gb/s", 44, 15),
    )
}
"""By name."""


def link_of(name: str) -> Link:
    """The link of that name.

    Raises:
        ValueError: for an unknown one; lists the known.
    """
    if name not in LINKS:
        raise ValueError(f"--link {name!r} is unknown; known: {', '.join(LINKS)}")
    return LINKS[name]


def fitted_link(name: str, ranks: int, rows: Sequence[dict[str, Any]], source: str) -> Link:
    """The link whose one-shot sums take the measured times best, by relative error.

    Args:
        name: of the result.
        ranks: that were measured.
        rows: of `bench_all_reduce`: `bytes` and `median_us`.
        source: where the rows come from.
    """
    # x: the bytes that reach a rank.
    alpha, beta = fitted_line((row["bytes"] * (ranks - 1), row["median_us"] * 1e-6) for row in rows)
    assert min(alpha, beta) > 0, "sums that cost nothing"
    return Link(name, name, 1 / beta, alpha, source)
