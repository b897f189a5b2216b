"""Everything that one GPU machine can tell, within eight minutes, in one JSON file.

    .venv/bin/python tools/gpu_suite.py             # benchmarks/results/gpu-suite-<gpu>.json
    .venv/bin/python tools/gpu_suite.py --dry-run   # tiny shapes on the CPU: tests the script
    .venv/bin/python tools/gpu_suite.py --compile-ahead DIR    # without a card: fills DIR, which
                                   # TRITON_CACHE_DIR names, at the same path, on the card's machine

Installs nothing. Each section is a process of its own with a budget: one that fails or takes too
long leaves its error, and the rest goes on. The file is written after every section. Its
`calibration` is what `sidewinder plan --calibration FILE` reads.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from gpu_checks.verdicts import verdicts

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"
"""A checkout that is not installed serves, too."""

SECTIONS = {
    "compile": ("compile", 45.0),
    "kernels": ("kernels", 30.0),
    "end_to_end": ("end_to_end", 80.0),
    "tests": ("tests_on_gpu", 120.0),
    "sharing": ("sharing", 60.0),
    "transformers": ("peers", 55.0),
    "profile": ("profile", 40.0),
    "shards": ("shards", 45.0),
}
"""Name to module in `gpu_checks` and seconds it may take, about what an H100 took. Kernels are
compiled and tuned first; the time that a section leaves belongs to those after it."""

TOTAL_S = 480.0
GRACE_S = 10.0
"""A section leaves out what does not fit in its budget; this much later it is ended."""


def run_section(name: str, dry_run: bool, budget_s: float) -> dict[str, Any]:
    """One section in this process."""
    from gpu_checks.context import Context

    module = importlib.import_module(f"gpu_checks.{SECTIONS[name][0]}")
    result: dict[str, Any] = module.run(Context(dry_run, budget_s))
    return result


def run_apart(command: list[str], output: Path, budget_s: float) -> dict[str, Any]:
    """One section in a process of its own; its result, or what went wrong."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=budget_s + GRACE_S,
            check=False,
        )
        tail, status = done.stderr[-2000:], f"exit status {done.returncode}"
    except subprocess.TimeoutExpired as late:
        error = late.stderr or b""
        text = error.decode(errors="replace") if isinstance(error, bytes) else error
        tail, status = text[-2000:], f"ended after {budget_s + GRACE_S:.0f} s"
    result: dict[str, Any]
    if output.is_file():
        result = json.loads(output.read_text())
    else:
        result = {"error": status, "stderr": tail}
    return result | {"wall_s": time.monotonic() - started}


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
        result = _guarded(args.section, args.dry_run, args.budget)
        args.output.write_text(json.dumps(result))
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
    deadline = time.monotonic() + args.total
    names = args.sections.split(",") if args.sections else list(SECTIONS)
    scale = min(1.0, (args.total - GRACE_S) / sum(SECTIONS[name][1] for name in names))
    for index, name in enumerate(names):
        later = scale * sum(SECTIONS[other][1] for other in names[index + 1 :])
        left = deadline - time.monotonic() - GRACE_S
        budget = min(max(scale * SECTIONS[name][1], left - later), left)
        report["sections"][name] = _section(name, args.dry_run, budget)
        report["calibration"] = report["sections"].get("kernels", {}).get("calibration", {})
        report["verdicts"] = [] if args.dry_run else verdicts(report["sections"])
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1) + "\n")
        print(f"gpu_suite: {name}: {_summary(report['sections'][name])}", file=sys.stderr)
    for line in map(_verdict, report["verdicts"]):
        print(line)
    print(output)
    return int(any("error" in section for section in report["sections"].values()))


def _section(name: str, dry_run: bool, budget_s: float) -> dict[str, Any]:
    if budget_s < 5:
        return {"error": "no time left"}
    if dry_run:
        return _guarded(name, True, budget_s)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--section", name]
        command += ["--budget", str(budget_s), "--output", str(file)]
        return run_apart(command, file, budget_s)


def _guarded(name: str, dry_run: bool, budget_s: float) -> dict[str, Any]:
    started = time.monotonic()
    try:
        result = run_section(name, dry_run, budget_s)
    except Exception as error:
        result = {
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc()[-3000:],
        }
    return result | {"wall_s": time.monotonic() - started}


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
    failed = sum("error" in row or row.get("passed") is False for row in rows)
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
    sys.exit(main())
