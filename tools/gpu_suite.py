"""Everything that one GPU machine can tell, within eight minutes, in one JSON file.

    .venv/bin/python tools/gpu_suite.py             # benchmarks/results/gpu-suite-<gpu>.json
    .venv/bin/python tools/gpu_suite.py --dry-run   # tiny shapes on the CPU: tests the script
    .venv/bin/python tools/gpu_suite.py --compile-ahead DIR    # without a card: fills DIR, which
                                   # TRITON_CACHE_DIR names, at the same path, on the card's machine

Installs nothing. Each section is a process of its own with a budget: one that fails or takes too
long leaves its error and the rows that it had, and the rest goes on. The file is written after
every section; that of the running one lies beside it. Its `calibration` is what
`sidewinder plan --calibration FILE` reads.
"""

import argparse
import importlib
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_checks.processes import run_for, write_json
from gpu_checks.verdicts import verdicts

if TYPE_CHECKING:  # It needs the package, which may be the checkout's.
    from gpu_checks.context import Context

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"
"""A checkout that is not installed serves, too."""

SECTIONS = {
    "compile": ("compile", 45.0),
    "kernels": ("kernels", 55.0),
    "end_to_end": ("end_to_end", 80.0),
    "tests": ("tests_on_gpu", 110.0),
    "sharing": ("sharing", 60.0),
    "transformers": ("peers", 45.0),
    "profile": ("profile", 40.0),
    "shards": ("shards", 45.0),
}
"""Name to module in `gpu_checks` and seconds it may take, about what an H100 took. Kernels are
compiled and tuned first; the time that a section leaves belongs to those after it."""

TOTAL_S = 480.0
GRACE_S = 10.0
"""A section leaves out what does not fit in its budget; this much later it is ended."""


def run_section(name: str, context: "Context") -> dict[str, Any]:
    """One section in this process."""
    module = importlib.import_module(f"gpu_checks.{SECTIONS[name][0]}")
    result: dict[str, Any] = module.run(context)
    return result


def run_apart(command: list[str], output: Path, budget_s: float) -> dict[str, Any]:
    """One section in a process of its own; its result, or as much of it as there is and what went
    wrong."""
    started = time.monotonic()
    ended = run_for(command, budget_s + GRACE_S, cwd=ROOT)
    result = _kept(output)
    if "wall_s" not in result:
        status = f"exit status {ended.status}"
        if ended.status is None:
            status = f"ended after {budget_s + GRACE_S:.0f} s"
        result |= {"error": status, "stderr": ended.err[-2000:]}
    return result | {"wall_s": time.monotonic() - started}


def _kept(output: Path | None) -> dict[str, Any]:
    """What a section has left so far."""
    kept: dict[str, Any] = {}
    if output is not None and output.is_file():
        kept = json.loads(output.read_text())
    return kept


def use_checkout() -> None:
    """Let this process and those that it starts find the package."""
    if str(SOURCES) not in sys.path:
        sys.path.insert(0, str(SOURCES))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCES), *filter(None, paths)])


def main() -> int:
    """Run all sections; 0 if none failed as a whole."""
    args = _arguments()
    use_checkout()
    if args.section:
        context = _context(args.dry_run, args.budget, args.output)
        write_json(args.output, _guarded(args.section, context))
        return 0
    if args.compile_ahead:
        print(importlib.import_module("gpu_checks.ahead").run(args.compile_ahead, args.gpu))
        return 0
    if not args.dry_run and not torch.cuda.is_available():
        print("gpu_suite: no CUDA device here; --dry-run tests the script", file=sys.stderr)
        return 2
    report = _header(args.dry_run)
    output = args.output or _default_output(args.dry_run)
    os.environ.setdefault("SIDEWINDER_TUNING", str(output.with_suffix(".tuning.json").resolve()))
    output.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + args.total
    names = args.sections.split(",") if args.sections else list(SECTIONS)
    scale = min(1.0, (args.total - GRACE_S) / sum(SECTIONS[name][1] for name in names))
    for index, name in enumerate(names):
        later = scale * sum(SECTIONS[other][1] for other in names[index + 1 :])
        left = deadline - time.monotonic() - GRACE_S
        budget = min(max(scale * SECTIONS[name][1], left - later), left)
        report["sections"][name] = _section(name, args.dry_run, budget, output)
        report["calibration"] = report["sections"].get("kernels", {}).get("calibration", {})
        report["verdicts"] = [] if args.dry_run else verdicts(report["sections"])
        write_json(output, report)
        print(f"gpu_suite: {name}: {_summary(report['sections'][name])}", file=sys.stderr)
    for line in map(_verdict, report["verdicts"]):
        print(line)
    print(output)
    return int(any("error" in section for section in report["sections"].values()))


def _section(name: str, dry_run: bool, budget_s: float, output: Path) -> dict[str, Any]:
    """A section's result; its file lies beside the suite's, which may be ended, too."""
    if budget_s < 5:
        return {"error": "no time left"}
    if dry_run:
        return _guarded(name, _context(dry_run, budget_s))
    file = output.with_name(f"{output.stem}.{name}.json").resolve()
    file.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--section", name]
    command += ["--budget", str(budget_s), "--output", str(file)]
    result = run_apart(command, file, budget_s)
    file.unlink(missing_ok=True)
    return result


def _context(dry_run: bool, budget_s: float, output: Path | None = None) -> "Context":
    from gpu_checks.context import Context

    return Context(dry_run, budget_s, output=output)


def _guarded(name: str, context: "Context") -> dict[str, Any]:
    try:
        result = run_section(name, context)
    except Exception as error:
        result = _kept(context.output) | {
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc()[-3000:],
        }
    return result | {"wall_s": time.monotonic() - context.started}


def _header(dry_run: bool) -> dict[str, Any]:
    from sidewinder.bench.machine import machine_info

    versions: dict[str, Any] = {"cuda": torch.version.cuda, "dry_run": dry_run}
    for name in ("triton", "transformers"):
        try:
            versions[name] = importlib.import_module(name).__version__
        except ImportError:
            versions[name] = None
    return {"what": "gpu_suite", "machine": machine_info(), "versions": versions, "sections": {}}


def _default_output(dry_run: bool) -> Path:
    if dry_run:
        return Path(tempfile.mkdtemp()) / "gpu-suite-dry.json"
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"gpu-suite-{gpu}.json"


def _summary(section: dict[str, Any]) -> str:
    if "error" in section:
        return f"FAILED: {section['error']}"
    rows = section.get("rows", [])
    failed = sum("error" in row or "errors" in row or row.get("passed") is False for row in rows)
    skipped = sum("skipped" in row for row in rows)
    return f"{len(rows)} rows, {failed} failed, {skipped} skipped, {section['wall_s']:.0f} s"


def _verdict(row: dict[str, Any]) -> str:
    met = {True: "met", False: "MISSED", None: "not measured"}[row["met"]]
    value = f"{row['value']:.3g}" if isinstance(row["value"], float) else row["value"]
    return f"{met}: {row['what']}: {value} (target {row['target']})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument(
        "--compile-ahead", type=Path, metavar="DIR", help="only compile, without a card, into DIR"
    )
    parser.add_argument("--gpu", default="h100", help="what to compile for (default: h100)")
    parser.add_argument("--sections", help=f"comma-separated, of {', '.join(SECTIONS)}")
    parser.add_argument("--total", type=float, default=TOTAL_S, help="seconds for all sections")
    parser.add_argument("--output", type=Path, help="where the result goes")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, default=60.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.total <= 2 * GRACE_S:
        parser.error(
            f"--total {args.total:.0f} is too short; use more than {2 * GRACE_S:.0f} seconds"
        )
    return args


if __name__ == "__main__":
    # Whoever ends this process ends its section, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
