"""What drafts cost and what they gain (docs/generation.md, "Speculation").

    .venv/bin/python tools/bench_speculation.py    # 20 minutes; benchmarks/results/speculation.json

- `costs`: published shapes, random weights, batch 1: a step with so many drafts, all of them wrong,
  over one without, which takes its turn in the same round.
- `replay`: the drafter follows held-out text as if a model had written it. With the costs that
  gives how many times as fast it would be written.
- `texts`: the demo models go on behind held-out text, with drafts and without.
"""

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from page_blocks import fill
from tqdm import tqdm

from sidewinder.bench.machine import machine_info
from sidewinder.bench.shapes import write_shape
from sidewinder.engine import scheduler
from sidewinder.engine.drafts import Drafter
from sidewinder.engine.packing import n_accepted
from sidewinder.llm import LLM
from sidewinder.sampling import SamplingParams
from sidewinder.tokenizer import Tokenizer

SHAPES = ("mamba-130m", "mamba-790m", "mamba2-780m")
WEIGHTS = ("auto", "int8")
DRAFTS = (1, 2, 3, 5, 7, 11, 15)
NEW_TOKENS = 24

PAGE = Path("docs/generation.md")
RESULTS = Path("benchmarks/results/speculation.json")
HELD_OUT = Path("data/heldout.txt")
MOST = (2, 4, 8, 15)
N_REPLAYED, PROMPT_TOKENS, TEXT_TOKENS = 40, 1024, 512

MODELS = ("mamba", "falcon-mamba", "mamba2", "zamba")
N_PROMPTS, ANSWER_TOKENS, SPECULATE = 8, 128, 8
TEMPERATURES = (0.0, 0.7)


class WrongDrafter(Drafter):
    """Drafts `n_drafts` tokens, and a random model hardly ever draws them."""

    n_drafts = 0

    def draft(self, most: int) -> tuple[int, ...]:
        return (self._text[0],) * min(most, WrongDrafter.n_drafts)


@contextmanager
def drafting_by(kind: type[Drafter]) -> Iterator[None]:
    """With another drafter in the engine."""
    setattr(scheduler, "Drafter", kind)  # noqa: B010
    try:
        yield
    finally:
        setattr(scheduler, "Drafter", Drafter)  # noqa: B010


def costs(shape: str, weight_dtype: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step without drafts, and how many times as long those with drafts take."""
    times: dict[int, list[float]] = {n: [] for n in (0, *DRAFTS)}
    with (
        tempfile.TemporaryDirectory() as folder,
        drafting_by(WrongDrafter),
        LLM(
            write_shape(shape, Path(folder)), device="cpu", load_format="random",
            weight_dtype=weight_dtype, speculate=max(DRAFTS), max_batch_size=1, state_cache_bytes=0,
        ) as llm,
    ):  # fmt: skip
        for n_drafts in times:  # Steps are recorded.
            step_s(llm, n_drafts)
        for _ in tqdm(range(rounds), desc=f"{shape}, {weight_dtype}"):
            for n_drafts, own in times.items():
                own.append(step_s(llm, n_drafts))
    ratios = {
        n: statistics.median(a / b for a, b in zip(own, times[0], strict=True))
        for n, own in times.items()
    }
    return {
        "shape": shape,
        "weight_dtype": weight_dtype,
        "step_ms": 1e3 * statistics.median(times[0]),
        "times_as_long": ratios,
        "all_s": times,
    }


def step_s(llm: LLM, n_drafts: int) -> float:
    """Seconds of a decode step with so many drafts."""
    WrongDrafter.n_drafts = n_drafts
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    before = llm.counters.steps
    (output,) = llm.generate([[5, 17, 200]], params)
    n_steps = llm.counters.steps - before - 1  # The first one runs the prompt.
    assert n_steps > NEW_TOKENS // 2, "drafts are meant to be wrong"
    assert output.metrics.tpot_s is not None
    return output.metrics.tpot_s * (NEW_TOKENS - 1) / n_steps


def replay(token_ids: Sequence[int], most: int, seconds: dict[int, float]) -> dict[str, float]:
    """Follow pieces of a text; a step with `n` drafts takes so many seconds."""
    n_tokens = n_steps = n_drafts = n_right = 0
    drafted_s, length = 0.0, PROMPT_TOKENS + TEXT_TOKENS
    for number in range(N_REPLAYED):
        first = number * (len(token_ids) - length) // N_REPLAYED
        text = tuple(token_ids[first : first + length])
        drafter, place = Drafter(text[: PROMPT_TOKENS + 1]), PROMPT_TOKENS + 1
        while place < length:
            drafts = drafter.draft(min(most, length - place - 1))
            n_good = n_accepted(drafts, text[place:])
            for token in text[place : place + n_good + 1]:
                drafter.extend(token)
            place += n_good + 1
            n_tokens, n_steps = n_tokens + n_good + 1, n_steps + 1
            n_drafts, n_right = n_drafts + len(drafts), n_right + n_good
            drafted_s += between(seconds, len(drafts))
    return {
        "speculate": most,
        "tokens_per_step": n_tokens / n_steps,
        "drafts_per_step": n_drafts / n_steps,
        "accepted": n_right / max(1, n_drafts),
        "times_as_fast": n_tokens * seconds[0] / drafted_s,
    }


def between(seconds: dict[int, float], n_drafts: int) -> float:
    """A step's time, where that number of drafts was not measured between its neighbours'."""
    above = min(n for n in seconds if n >= n_drafts)
    below = max(n for n in seconds if n <= n_drafts)
    share = (n_drafts - below) / max(1, above - below)
    return seconds[below] + share * (seconds[above] - seconds[below])


def texts(model: str, token_ids: Sequence[int], temperature: float) -> dict[str, Any]:
    """How many times as fast a demo model goes on behind held-out text, and whether it says the
    same."""
    params = SamplingParams(
        max_tokens=ANSWER_TOKENS, temperature=temperature, seed=1, ignore_eos=True
    )
    stride = (len(token_ids) - PROMPT_TOKENS) // N_PROMPTS
    prompts = [list(token_ids[i * stride :][:PROMPT_TOKENS]) for i in range(N_PROMPTS)]
    times: list[list[float]] = []
    answers: list[list[list[int]]] = []
    counted: tuple[int, ...] = ()
    for speculate in (0, SPECULATE):
        with LLM(f"models/{model}", device="cpu", speculate=speculate, state_cache_bytes=0) as llm:
            for prompt in prompts:  # Steps are recorded.
                llm.generate([prompt], params)
            before = counted_by(llm)
            outputs = [llm.generate([prompt], params)[0] for prompt in prompts]
            counted = tuple(b - a for a, b in zip(before, counted_by(llm), strict=True))
        times.append([output.metrics.tpot_s or 0.0 for output in outputs])
        answers.append([output.token_ids for output in outputs])
    n_steps, n_drafts, n_right = counted
    return {
        "model": model,
        "temperature": temperature,
        "same_texts": answers[0] == answers[1],
        "tokens_per_step": (ANSWER_TOKENS - 1) * N_PROMPTS / (n_steps - N_PROMPTS),
        "accepted": n_right / max(1, n_drafts),
        "times_as_fast": statistics.median(a / b for a, b in zip(*times, strict=True)),
        "all_tpot_s": times,
    }


def counted_by(llm: LLM) -> tuple[int, int, int]:
    """Steps, drafts, and accepted ones so far."""
    counters = llm.counters
    return counters.steps, counters.draft_tokens, counters.accepted_tokens


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "outputs have token ids and no text")
    tokenizer = Tokenizer("models/mamba")
    tokenizer.load()
    token_ids = tokenizer.encode(HELD_OUT.read_text())
    result: dict[str, Any] = {"machine": machine_info(), "costs": [], "texts": []}
    for shape in SHAPES:
        for weight_dtype in WEIGHTS:
            row = costs(shape, weight_dtype, args.rounds)
            row["replay"] = [replay(token_ids, most, row["times_as_long"]) for most in MOST]
            result["costs"].append(row)
    for model in MODELS:
        for temperature in TEMPERATURES:
            result["texts"].append(texts(model, token_ids, temperature))
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(filled(PAGE.read_text(), json.loads(args.output.read_text())))


def filled(page: str, result: dict[str, Any]) -> str:
    """The page with both tables of what the file of results holds."""
    for name, lines in (("costs", cost_lines(result)), ("texts", text_lines(result))):
        page = fill(page, name, lines)
    return page


def cost_lines(result: dict[str, Any]) -> list[str]:
    """The table of costs, each step's as times one without drafts."""
    counts = [n for n in DRAFTS if n in (1, 3, 7, 15)]
    heads = [f"{n} draft{'s' * (n > 1)}" for n in counts] + [f"speculate={n}" for n in (4, 8)]
    lines = [f"| shape, weights | a step, ms | {' | '.join(heads)} |", "|---" * 8 + "|"]
    for row in result["costs"]:
        weights = "bf16" if row["weight_dtype"] == "auto" else row["weight_dtype"]
        gains = {each["speculate"]: each["times_as_fast"] for each in row["replay"]}
        cells = [f"{row['times_as_long'][str(n)]:.2f}" for n in counts]
        cells += [f"{gains[n]:.2f} x" for n in (4, 8)]
        name = f"{row['shape']}, {weights}"
        lines.append(f"| {name} | {row['step_ms']:.1f} | {' | '.join(cells)} |")
    return lines


def text_lines(result: dict[str, Any]) -> list[str]:
    """The table of what the demo models wrote.

    Raises:
        ValueError: if drafts changed a text.
    """
    lines = ["| model | temperature | tokens a step | drafts accepted | times as fast |"]
    lines.append("|---" * 5 + "|")
    for row in result["texts"]:
        if not row["same_texts"]:
            raise ValueError(f"drafts changed a text of {row['model']}; this is a defect")
        lines.append(
            f"| {row['model']} | {row['temperature']} | {row['tokens_per_step']:.2f} "
            f"| {row['accepted']:.0%} | {row['times_as_fast']:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
