"""What `make demo` runs: tensor-parallel generation with a small model that ships here."""

import argparse
import sys
from pathlib import Path

from sidewinder import LLM, SamplingParams

MODELS = Path(__file__).resolve().parent.parent / "models"
PROMPT = 'def read_config(path):\n    """'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mamba", help="a folder of models/ (default: mamba)")
    parser.add_argument("--tp", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    params = SamplingParams(max_tokens=args.max_tokens, temperature=0.6, top_p=0.95, seed=args.seed)
    print(f"\nsidewinder: models/{args.model} on {args.tp} ranks\n")
    with LLM(str(MODELS / args.model), tp=args.tp, device="cpu") as llm:
        llm.generate(
            [args.prompt], SamplingParams(max_tokens=8)
        )  # first-use costs stay out of the figures
        print(args.prompt, end="")
        for piece in llm.stream(args.prompt, params):
            print(piece.text, end="", flush=True)
            if piece.output is not None:
                output = piece.output
        report = llm.report()
    metrics = output.metrics
    rows = [
        ("output", f"{len(output.token_ids)} tokens"),
        ("speed", f"{len(output.token_ids) / metrics.total_s:.0f} tokens/s"),
        ("time to first token", f"{metrics.ttft_s * 1e3:.1f} ms"),
        ("time per output token", f"{metrics.tpot_s * 1e3:.2f} ms" if metrics.tpot_s else "-"),
        ("weights per rank", f"{report['weight_bytes_per_rank'] / 2**20:.2f} MiB"),
        ("state per sequence and rank", f"{report['state_bytes_per_sequence'] / 2**10:.0f} KiB"),
        (
            "collectives per token",
            f"{report['collectives_per_token']} over {report['collectives']}",
        ),
    ]
    print("\n")
    for name, value in rows:
        print(f"  {name:<28} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
