"""What the suite's figures say of the targets that were set: reached, missed, or not measured."""

from typing import Any

Row = dict[str, Any]

DECODE_MODELS = ("mamba-2.8b", "falcon-mamba-7b")


def verdicts(sections: dict[str, Row]) -> list[Row]:
    """One row per target and model: `what`, `value`, `target`, `met` (None: not measured)."""
    return [*_end_to_end(sections), *_scan(sections), *_parity(sections)]


def _end_to_end(sections: dict[str, Row]) -> list[Row]:
    found = []
    ours, theirs = (_by_model(sections, name) for name in ("end_to_end", "transformers"))
    for model in DECODE_MODELS:
        row = ours.get(model, {})
        found.append(
            _target(f"{model}: decode at batch 1, percent of the read bandwidth",
                    row.get("decode_percent"), 70)
        )  # fmt: skip
        found.append(
            _target(f"{model}: prefill of 8,192 tokens, percent of torch's GEMM rate on its shapes",
                    row.get("prefill_percent"), 60)
        )  # fmt: skip
        eager = theirs.get(model, {}).get("tpot_s")
        mine = _median(row.get("latency, graphs auto"), "tpot_s")
        ratio = None if eager is None or mine is None else eager / mine
        found.append(_target(f"{model}: decode, times as fast as transformers", ratio, 10))
    return found


def _scan(sections: dict[str, Row]) -> list[Row]:
    found = []
    for model in DECODE_MODELS:
        rows = {
            row["case"]: row
            for row in sections.get("kernels", {}).get("rows", [])
            if row.get("model") == model
        }
        scan = rows.get("selective_scan, prefill", {})
        percents = [scan.get("percent_of_floor"), scan.get("tuned_percent_of_floor")]
        best = max((each for each in percents if each is not None), default=None)
        found.append(
            _target(f"{model}: selective scan, 8,192 tokens, percent of its bytes' floor", best, 60)
        )
        peer = rows.get("mamba_ssm selective_scan_fn, prefill", {}).get("seconds")
        times = [scan.get("seconds"), scan.get("tuned_seconds")]
        mine = min((each for each in times if each is not None), default=None)
        ratio = None if peer is None or mine is None else peer / mine
        found.append(_target(f"{model}: selective scan, times as fast as mamba-ssm's", ratio, 1))
    return found


def _parity(sections: dict[str, Row]) -> list[Row]:
    tests, sharing = sections.get("tests"), sections.get("sharing")
    rows = [] if sharing is None else sharing.get("rows", [])
    passed = [row["passed"] for row in rows if "passed" in row]
    return [
        {
            "what": "GPU tests, failures",
            "value": None if tests is None else tests.get("summary", tests.get("error")),
            "target": "none",
            "met": None if tests is None else "error" not in tests,
        },
        {
            "what": "ranks sharing the card agree with one rank, comparisons",
            "value": f"{sum(passed)} of {len(rows)}",
            "target": "all",
            "met": None if not rows else len(passed) == len(rows) and all(passed),
        },
    ]


def _by_model(sections: dict[str, Row], name: str) -> dict[str, Row]:
    return {row["model"]: row for row in sections.get(name, {}).get("rows", []) if "model" in row}


def _median(measured: Row | None, name: str) -> float | None:
    return None if measured is None or measured.get(name) is None else measured[name]["median"]


def _target(what: str, value: float | None, target: float) -> Row:
    return {
        "what": what, "value": value, "target": target,
        "met": None if value is None else value >= target,
    }  # fmt: skip
