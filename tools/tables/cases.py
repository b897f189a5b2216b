"""What is measured: entrants, the loads they run in turn, and the figures that come of it."""

from dataclasses import dataclass

Figure = tuple[str, str]
"""An entrant's name, and a number of its answers."""


@dataclass(frozen=True)
class Entrant:
    """One contestant of a group.

    Attributes:
        name: in tables.
        kind: which program: "sidewinder", "machine", "transformers" or "llama".
        options: of that program; for llama the GGUF type of the matrices.
        cores: of its process; several for processes that answer at the same time.
    """

    name: str
    kind: str
    options: tuple[str, ...] = ()
    cores: tuple[str, ...] = ("0,1",)


@dataclass(frozen=True)
class Row:
    """One line of a table: a product of figures over a product of figures, round by round.

    Attributes:
        label: what it is.
        over, under: figures of one round; nothing under is 1.
        target: what the median should reach; None for a plain figure.
        at_least: whether the target is a floor; else a ceiling.
        unit: "x", "%", "tokens/s", ...
    """

    label: str
    over: tuple[Figure, ...]
    under: tuple[Figure, ...] = ()
    target: float | None = None
    at_least: bool = True
    unit: str = "x"


@dataclass(frozen=True)
class Case:
    """A load that all entrants of a group run, round by round.

    Attributes:
        name: within its section.
        prompt, new, batch: tokens of each prompt, decode steps, sequences.
        rows: what to report.
        rounds: at most so many.
        budget_s: no further round begins after so many seconds, though the first always ends.
        warm_up: whether a round before the first is not counted.
    """

    name: str
    prompt: int
    new: int
    batch: int
    rows: tuple[Row, ...]
    rounds: int = 5
    budget_s: float = 90.0
    warm_up: bool = True

    @property
    def request(self) -> dict[str, int]:
        """What the entrants are asked."""
        return {"prompt": self.prompt, "new": self.new, "batch": self.batch}


@dataclass(frozen=True)
class Group:
    """Entrants that are alive at the same time, and their cases.

    Attributes:
        shape: of the model.
        entrants: the first is asked first in even rounds, last in odd ones.
        cases: in order.
        n_layers: fewer layers than the shape has; None for all.
    """

    shape: str
    entrants: tuple[Entrant, ...]
    cases: tuple[Case, ...]
    n_layers: int | None = None


@dataclass(frozen=True)
class Section:
    """One raw result file and one heading of docs/benchmarks.md.

    Attributes:
        name: of the file, and on the command line.
        title: the heading.
        about: what is compared, in a sentence or two.
        groups: none for the all-reduce, which has its own program.
        level: of the kernels; it is skipped where another one is the best. None: any.
    """

    name: str
    title: str
    about: str
    groups: tuple[Group, ...] = ()
    level: str | None = None
