"""`make bench`: measures the tables of docs/benchmarks.md, one raw JSON file per section.

    python tools/bench_all.py [SECTION ...] [--llama-python PYTHON] [--results FOLDER] [--list]

Without names, all sections. Each is independent: what fails is said at the end, and the others run.
Close other programs first: the machine's load before and after is part of every result.
"""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from tables.cases import Section
from tables.measure import measure_group, say
from tables.sections import ALL_REDUCE, SECTIONS
from tables.start import Settings

from sidewinder.bench.alternating import bench_alternating
from sidewinder.bench.machine import machine_info
from sidewinder.ops import native

ROOT = Path(__file__).resolve().parents[1]
ALL_REDUCE_SIZES = (8 << 10, 512 << 10)
ALL_REDUCE_CALLS = 100_000


def measure_section(section: Section, settings: Settings) -> dict[str, Any]:
    """One section's raw result."""
    started = time.monotonic()
    head = {
        "section": section.name,
        "machine": machine_info(),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "cores": settings.cores,
        "tiny": settings.tiny,
    }
    if section is ALL_REDUCE:
        calls = 200 if settings.tiny else ALL_REDUCE_CALLS
        body: dict[str, Any] = {"all_reduce": bench_alternating(2, ALL_REDUCE_SIZES, calls)}
    else:
        body = {"groups": [measure_group(group, settings) for group in section.groups]}
    tail = {"seconds": time.monotonic() - started, "load_1min_after": os.getloadavg()[0]}
    return head | body | tail


def chosen_sections(names: list[str]) -> list[Section]:
    """Sections by name, in their own order; all for no names.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    known = [section.name for section in SECTIONS]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no section {name!r}; use {', '.join(known)}")
    return [section for section in SECTIONS if not names or section.name in names]


def needs_llama(section: Section) -> bool:
    """Whether llama.cpp takes part."""
    return any(entrant.kind == "llama" for group in section.groups for entrant in group.entrants)


def two_cores(text: str | None) -> tuple[str, str]:
    """The cores to measure on: as given, or the first two that may be used.

    Raises:
        ValueError: if there are not two.
    """
    cores = text.split(",") if text else [str(core) for core in sorted(os.sched_getaffinity(0))[:2]]
    if len(cores) != 2:
        raise ValueError(f"cores {','.join(cores)}: the tables are of two cores; name two")
    return cores[0], cores[1]


def run(args: argparse.Namespace) -> int:
    """Measure the chosen sections; the exit status."""
    settings = Settings(args.work, args.llama_python, two_cores(args.cores), args.tiny)
    os.sched_setaffinity(0, {int(core) for core in settings.cores})
    args.results.mkdir(parents=True, exist_ok=True)
    failed, skipped = {}, {}
    sections = chosen_sections(args.sections)
    for number, section in enumerate(sections, 1):
        if needs_llama(section) and not args.llama_python:
            skipped[section.name] = "needs --llama-python (make bench LLAMA_PYTHON=...)"
            continue
        if section.level not in (None, native.isa()):
            skipped[section.name] = f"is for level {section.level}; the best here is {native.isa()}"
            continue
        say(f"{number} of {len(sections)}: {section.name}")
        try:
            result = measure_section(section, settings)
        except Exception as error:
            failed[section.name] = str(error)
            say(f"  failed: {error}")
            continue
        path = args.results / f"{section.name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        say(f"  {path}, {result['seconds']:.0f} s")
    for name, reason in (skipped | failed).items():
        say(f"not measured: {name}: {reason}")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--list", action="store_true", help="name the sections and stop")
    parser.add_argument(
        "--llama-python", help="a Python with llama-cpp-python, gguf and sidewinder"
    )
    parser.add_argument("--cores", help="two cores, as 0,1 (the first two that may be used)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="model files")
    parser.add_argument("--tiny", action="store_true", help="tiny models: does it all work?")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{section.name:22} {section.title}" for section in SECTIONS))
        return 0
    try:
        return run(args)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
