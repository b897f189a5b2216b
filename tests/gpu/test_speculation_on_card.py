"""Speculation by the engine on a card: the same texts, in graphs and without, on one rank and on
two that share the card."""

import pytest
import torch
from drafting_cases import Prophet
from gpu_engines import FULL_BUCKET, GREEDY, engine

from sidewinder import SamplingParams
from sidewinder.parallel.devices import SHARE_VARIABLE
from sidewinder.testing import save_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RANDOM = SamplingParams(max_tokens=12, temperature=0.8, top_k=20, seed=3, ignore_eos=True)


def answers(llm):
    """Of several texts together, then of one, which goes on behind the first answer."""
    outputs = llm.generate(FULL_BUCKET, [GREEDY, RANDOM, GREEDY, RANDOM])
    outputs += llm.generate([[*FULL_BUCKET[0], *outputs[0].token_ids, 4]], RANDOM)
    return [(output.prompt_token_ids, output.token_ids) for output in outputs]


@pytest.mark.parametrize(("graphs", "tp"), [("auto", 1), ("off", 1), ("auto", 2)])
@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "mamba2", "zamba", "bamba"])
def test_drafts_change_no_text(family, graphs, tp, tmp_path, monkeypatch):
    monkeypatch.setenv(SHARE_VARIABLE, "1")
    folder, options = save_tiny(family, tmp_path), {"tp": tp, "device": "cuda"}
    with engine(folder, cuda_graphs=graphs, **options) as llm:
        plain = answers(llm)
    prophet = Prophet([[*prompt, *tokens] for prompt, tokens in plain], 90)
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter", prophet)
    with engine(folder, cuda_graphs=graphs, speculate=5, **options) as llm:
        assert answers(llm) == plain
        assert llm.counters.draft_tokens > llm.counters.accepted_tokens > 8
