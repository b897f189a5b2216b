"""Runs a group: starts its entrants, asks them in turn, and sums up round by round."""

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from peers.contestant import Contestant, Together

from tables.cases import Case, Figure, Group, Row
from tables.start import Settings, start

Round = dict[str, dict[str, Any]]
"""Entrant to its answer."""


def measure_group(group: Group, settings: Settings) -> dict[str, Any]:
    """Start a group's entrants and run its cases; raw rounds and rows."""
    alive: dict[str, Contestant | Together] = {}
    try:
        for entrant in group.entrants:
            say(f"  starting {entrant.name} on {group.shape}")
            alive[entrant.name] = start(entrant, group, settings)
        return {
            "shape": group.shape,
            "n_layers": group.n_layers or "all",
            "entrants": {
                e.name: asdict(e) | {"about": alive[e.name].about} for e in group.entrants
            },
            "cases": [measure_case(case, alive, settings) for case in group.cases],
        }
    finally:
        for contestant in alive.values():
            contestant.close()


def measure_case(
    case: Case, alive: Mapping[str, Contestant | Together], settings: Settings
) -> dict[str, Any]:
    """Rounds until there are enough, or the time is up."""
    request = settings.request(case)
    if case.warm_up:
        play(alive, request, 0)
    rounds: list[Round] = []
    deadline = time.monotonic() + case.budget_s
    while len(rounds) < settings.rounds(case) and (not rounds or time.monotonic() < deadline):
        rounds.append(play(alive, request, len(rounds)))
        shown = "; ".join(
            f"{row.label} {value_of(row, rounds[-1]):.3g}" for row in case.rows if row.under
        )
        say(f"  {case.name}, round {len(rounds)}: {shown}")
    return {
        "name": case.name,
        "request": request,
        "rows": [summary(row, rounds) for row in case.rows],
        "rounds": rounds,
    }


def play(
    alive: Mapping[str, Contestant | Together], request: Mapping[str, Any], number: int
) -> Round:
    """One round: everybody once, in the other order every other time."""
    names = list(alive)
    if number % 2:
        names.reverse()
    answers = {name: alive[name].ask(request) for name in names}
    return {name: answers[name] for name in alive}


def value_of(row: Row, answers: Round) -> float:
    """A row's figure in one round."""
    return _product(row.over, answers) / _product(row.under, answers)


def _product(figures: Sequence[Figure], answers: Round) -> float:
    return math.prod(float(answers[entrant][key]) for entrant, key in figures)


def summary(row: Row, rounds: Sequence[Round]) -> dict[str, Any]:
    """A row's median and spread over the rounds; ratios pair what ran in the same round."""
    values = [value_of(row, answers) for answers in rounds]
    return {
        "label": row.label,
        "unit": row.unit,
        "target": row.target,
        "at_least": row.at_least,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


def say(text: str) -> None:
    """Progress, on standard error."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
