"""Where a machine's logical cores are: physical core, package, memory node."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CPU_ROOT = Path("/sys/devices/system/cpu")


class Place(NamedTuple):
    """Where a logical core is; ordered so that neighbours share as much as they can.

    Attributes:
        node: memory node: what is first written there is nearest to its cores.
        package: socket.
        physical: core of the package; logical ones of it are its hardware threads.
        core: the logical one.
    """

    node: int
    package: int
    physical: int
    core: int


def place_of(core: int) -> Place:
    """The place of a logical core; what the system does not tell counts as 0, and a core without a
    physical one as its own."""
    folder = CPU_ROOT / f"cpu{core}"
    nodes = sorted(folder.glob("node[0-9]*"))
    return Place(
        int(nodes[0].name.removeprefix("node")) if nodes else 0,
        _number(folder / "topology" / "physical_package_id", 0),
        _number(folder / "topology" / "core_id", core),
        core,
    )


def in_order_of_use(cores: Iterable[int]) -> list[int]:
    """One hardware thread of every physical core, neighbours together, then the second ones."""
    threads: dict[tuple[int, int], list[Place]] = defaultdict(list)
    for place in sorted(map(place_of, cores)):
        threads[place.package, place.physical].append(place)
    ranked = [(i, place) for own in threads.values() for i, place in enumerate(own)]
    return [place.core for _, place in sorted(ranked)]


def together(cores: Iterable[int]) -> list[int]:
    """Neighbours next to each other: hardware threads, then physical cores of a memory node."""
    return sorted(cores, key=place_of)


def physical_cores(cores: Iterable[int]) -> int:
    """How many physical cores these logical ones are of."""
    return len({(place.package, place.physical) for place in map(place_of, cores)})


def memory_nodes(cores: Iterable[int]) -> int:
    """How many memory nodes these logical cores are spread over."""
    return len({place.node for place in map(place_of, cores)})


def _number(path: Path, default: int) -> int:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.lstrip("-").isdigit() else default
