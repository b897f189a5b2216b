"""What quantised sums cost the demo models on held-out text; updates one JSON file.

    .venv/bin/python tools/quantised_accuracy.py models/mamba --tp 2

The first tokens of the text measure every sum's sensitivity and choose policies; the tokens after
them, which took no part in that, give the figures. Ranks are threads of one process; their sums
have the same bits as over any other transport.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sidewinder.agreement import Agreement
from sidewinder.bench.machine import machine_info
from sidewinder.collectives.base import Collectives
from sidewinder.collectives.quantised.policy import PhaseCodecs, Policy, delta_calls, policy_of
from sidewinder.config import EngineConfig, ModelConfig, load_model_config
from sidewinder.evaluation import Comparer, windows
from sidewinder.parallel.group import TensorParallel
from sidewinder.sensitivity import (
    SWEPT,
    Sensitivity,
    choose,
    fingerprint,
    measured_by,
    sweep,
)
from sidewinder.testing import run_ranks
from sidewinder.tokenizer import Tokenizer

RESULTS = Path("benchmarks/results/quantised-accuracy.json")
CALIBRATION_TOKENS = 4096
WINDOW = 1024
BUDGETS = (0.001, 0.005)
INT8_SHARE, INT4_SHARE = 0.8, 0.6
"""Shares of the sums' bytes that the policies leave to their codec at least."""


def compare(
    engine: EngineConfig,
    model: ModelConfig,
    policies: list[Policy],
    token_ids: list[int],
    same_weights: bool = False,
) -> list[Agreement]:
    """`evaluation.compare_policies`, with ranks as threads."""

    def rank(tp: TensorParallel, collectives: Collectives) -> list[Agreement]:
        comparer = Comparer(engine, model, tp, collectives)
        comparer.start([policy.to_json() for policy in policies], WINDOW, same_weights)
        for tokens in windows(token_ids, WINDOW):
            comparer.run(tokens)
        return comparer.result()

    return run_ranks(engine.tp, rank, timeout_s=600, in_turns=False)[0]


def measure(engine: EngineConfig, model: ModelConfig, token_ids: list[int]) -> Sensitivity:
    """Every sum's cost in every codec."""
    policies = [policy for _, _, policy in sweep(model)]
    found = compare(engine, model, policies, token_ids, same_weights=True)
    return measured_by(engine, model, found)


def sparing(
    measured: Sensitivity, model: ModelConfig, codec: str, share: float, instead: str
) -> Policy:
    """`codec` for at least `share` of the bytes, `instead` for the sums that it costs most."""
    calls = delta_calls(model)
    spare = (1 - share) * sum(calls.values()) + 1e-9
    spared = {}
    for site in sorted(calls, key=lambda site: -measured.cost(site, codec) / calls[site]):
        if calls[site] <= spare:
            spare -= calls[site]
            spared[site] = PhaseCodecs.parse(instead, site)
    return Policy(policy_of(codec).default, spared)


def plain_policies(measured: Sensitivity, model: ModelConfig) -> dict[str, Policy]:
    """What is compared without rotation, by name."""
    return {
        **{name: policy_of(name) for name in SWEPT},
        "int8 policy": sparing(measured, model, "int8", INT8_SHARE, "exact"),
        "int4 policy": sparing(measured, model, "int4", INT4_SHARE, "int8"),
        **{f"kl {budget}": choose(measured, model, budget) for budget in BUDGETS},
    }


def rotated_policies(measured: Sensitivity, model: ModelConfig) -> dict[str, Policy]:
    """What is compared with rotation, by name."""
    return {
        **{name: policy_of(name) for name in ("exact", "int8", "int4")},
        "int4 policy": sparing(measured, model, "int4", INT4_SHARE, "int8"),
    }


def row(name: str, found: Agreement, policy: Policy, model: ModelConfig) -> dict[str, Any]:
    """One line of the results."""
    exceptions = {site: codecs for site, codecs in policy.sites.items() if codecs != policy.default}
    return {
        "policy": name,
        "shares": {codec: round(part, 3) for codec, part in policy.shares(model).items()},
        "default": str(policy.default),
        "sites": {site: str(codecs) for site, codecs in exceptions.items()},
        "perplexity": round(found.perplexity, 4),
        "reference_perplexity": round(found.reference_perplexity, 4),
        "perplexity_change": round(found.perplexity / found.reference_perplexity - 1, 6),
        "mean_kl": float(f"{found.mean_kl:.3g}"),
        "p99_kl": float(f"{found.p99_kl:.3g}"),
        "top1_agreement": round(found.top1_agreement, 5),
        "top1_error": round(found.top1_error, 5),
        "top1_ties": round(found.top1_ties, 5),
        "predicted": found.n_predicted,
    }


def sensitivity_row(measured: Sensitivity, name: str) -> dict[str, Any]:
    """The costs, rounded."""

    def short(costs: Any) -> dict[str, float]:
        return {codec: float(f"{kl:.3g}") for codec, kl in costs.items()}

    return {
        "model": name,
        "tp": measured.tp,
        "dtype": measured.dtype,
        "predicted": measured.tokens,
        "together": short(measured.together),
        "sites": {site: short(costs) for site, costs in measured.sites.items()},
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model at one `tp`."""
    model = load_model_config(args.model)
    text = Path(args.text).read_text()
    token_ids = Tokenizer(args.model).encode(text)[: CALIBRATION_TOKENS + args.tokens]
    calibration, test = token_ids[:CALIBRATION_TOKENS], token_ids[CALIBRATION_TOKENS:]
    engine = EngineConfig(args.model, tp=args.tp, device="cpu", dtype=args.dtype or model.dtype)
    measured = stored_sensitivity(args, engine, model) if args.reuse else None
    measured = measured or measure(engine, model, calibration)
    choices = {False: plain_policies, True: rotated_policies}
    rows = []
    for rotate in (False, True) if args.only is None else (args.only == "rotated",):
        policies = choices[rotate](measured, model)
        found = compare(replace(engine, rotate=rotate), model, list(policies.values()), test)
        for (name, policy), agreement in zip(policies.items(), found, strict=True):
            place = {"model": args.name, "tp": args.tp, "dtype": engine.dtype, "rotate": rotate}
            rows.append(place | row(name, agreement, policy, model))
            print(json.dumps(rows[-1]), file=sys.stderr)
    return {"rows": rows, "sensitivities": [sensitivity_row(measured, args.name)]}


def stored_sensitivity(
    args: argparse.Namespace, engine: EngineConfig, model: ModelConfig
) -> Sensitivity | None:
    """What the results hold of this model, `tp` and dtype."""
    report = json.loads(args.results.read_text()) if args.results.exists() else {}
    for part in report.get("sensitivities", []):
        if (part["model"], part["tp"], part["dtype"]) == (args.name, args.tp, engine.dtype):
            return Sensitivity(
                fingerprint(engine, model), args.tp, engine.dtype, False, part["predicted"],
                part["sites"], part["together"],
            )  # fmt: skip
    return None


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a newer line with the same key replaces."""
    return row["model"], row["tp"], row["dtype"], row.get("rotate"), row.get("policy")


def update(file: Path, found: dict[str, Any]) -> None:
    """Put the figures in place of older ones of the same thing."""
    report = json.loads(file.read_text()) if file.exists() else {}
    if "sensitivities" not in report:
        report = {"rows": [], "sensitivities": []}
    head = {
        "what": "quantised sums against exact ones on held-out text",
        "command": "python tools/quantised_accuracy.py models/MODEL --tp TP",
        "machine": machine_info(),
        "text": f"data/heldout.txt; sensitivity: tokens 0 to {CALIBRATION_TOKENS}; rows: after it",
        "window": WINDOW,
    }
    for key in ("rows", "sensitivities"):
        lines_by_key = {key_of(line): line for line in report[key] + found[key]}
        head[key] = sorted(lines_by_key.values(), key=lambda line: (line["model"], line["tp"]))
    lines = json.dumps(head, indent=1)
    for key in ("rows", "sensitivities"):
        compact = ",\n  ".join(json.dumps(row) for row in head[key])
        whole = json.dumps({key: head[key]}, indent=1)[2:-2]
        lines = lines.replace(whole, f' "{key}": [\n  {compact}\n ]')
    file.write_text(lines + "\n")


def main() -> None:
    """Measure one model and store its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="model folder")
    parser.add_argument("--name", help="in the results (default: the folder's)")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--dtype", help="default: the checkpoint's")
    parser.add_argument("--text", default="data/heldout.txt")
    parser.add_argument("--tokens", type=int, default=16384, help="that the rows are over")
    parser.add_argument("--only", choices=("plain", "rotated"), help="half of the rows")
    parser.add_argument("--reuse", action="store_true", help="sensitivity from the results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.name = args.name or Path(args.model).name
    torch.set_num_threads(1)
    update(args.results, run(args))


if __name__ == "__main__":
    main()
