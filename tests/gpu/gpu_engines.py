"""What the engine must answer, on any device: `test_engine_on_card` asks it on a card."""

from pathlib import Path
from typing import Any

import torch
from parity_harness import assert_parity, oracle_logits

from sidewinder import LLM, SamplingParams
from sidewinder.testing import tiny_oracle

PROMPTS = [[5, 80, 12, 44, 7], [9], list(range(30, 50))]
FULL_BUCKET = [*PROMPTS, [7, 3, 61]]
"""As many as a graph serves without padding: a padded batch's matrix products may differ in their
last bits on a card, which a codec of 4 bits can turn into another text."""
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
DRAWS = {
    "greedy": GREEDY,
    "random": SamplingParams(
        max_tokens=12, temperature=0.8, top_k=20, top_p=0.9, seed=3, ignore_eos=True
    ),
    "penalised": SamplingParams(
        max_tokens=12, temperature=0.8, repetition_penalty=1.2, seed=3, ignore_eos=True
    ),
}


def engine(folder: Path, **options: Any) -> LLM:
    values = {"dtype": "float32", "kv_cache_tokens": 512, "max_batch_size": 4, "threads": 1}
    return LLM(folder, **(values | options))


def check(family: str, folder: Path, **options: Any) -> None:
    """Logits of prompts, and of what the engine writes after them, are transformers'."""
    oracle = tiny_oracle(family)
    oracle.save_pretrained(folder)
    with engine(folder, **options) as llm:
        texts = [output.token_ids for output in llm.generate(PROMPTS, GREEDY)]
        whole = [[*prompt, *text] for prompt, text in zip(PROMPTS, texts, strict=True)]
        ours = [torch.as_tensor(logits) for logits in llm.logits(whole)]
    for prompt, tokens, reference, logits in zip(
        PROMPTS, whole, oracle_logits(oracle, whole), ours, strict=True
    ):
        assert_parity(family, reference, logits)
        rows = reference[len(prompt) - 1 : -1]
        best, second = rows.topk(2, dim=-1).values.unbind(-1)
        clear = best - second > 2e-4 * reference.abs().max()
        drawn = torch.tensor(tokens[len(prompt) :])
        assert (rows.argmax(-1) == drawn)[clear].all(), "a decode step drew another token"


def check_graphs_change_nothing(
    family: str, folder: Path, prompts: list[list[int]] = PROMPTS, **options: Any
) -> None:
    """The same texts with graphs on and off, however they are drawn.

    No shape of a step with prompts comes three times: then it would be recorded, and padded.
    """
    tiny_oracle(family).save_pretrained(folder)
    texts = []
    for graphs in ("auto", "off"):
        with engine(folder, cuda_graphs=graphs, **options) as llm:
            texts.append({
                name: [
                    output.token_ids
                    for output in llm.generate(prompts[: 2 if name == "greedy" else None], params)
                ]
                for name, params in DRAWS.items()
            })  # fmt: skip
    assert texts[0] == texts[1]
