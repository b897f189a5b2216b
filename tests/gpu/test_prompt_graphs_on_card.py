"""Steps with prompts as CUDA graphs, by the engine: the third of a shape is recorded and replayed.

On ranks that share the card their sums, and the halves of a chunk, are in the graph.
"""

import random

import gpu_engines
import pytest
import torch

from sidewinder.parallel.devices import SHARE_VARIABLE
from sidewinder.testing import save_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = [(5, 1, 200), (9, 1, 190), (2, 1, 190), (30, 1, 170), (7, 1, 185), (3, 1, 199)]
"""Of one shape, 256 rows; long enough for halves."""


def prompts():
    draws = random.Random(0)
    return [[draws.choices(range(90), k=n) for n in lengths] for lengths in LENGTHS]


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "mamba2"])
def test_prompts_in_graphs_change_no_text(family, tp, tmp_path, monkeypatch):
    monkeypatch.setenv(SHARE_VARIABLE, "1")
    folder, texts = save_tiny(family, tmp_path), {}
    for graphs in ("auto", "off"):
        options = {"tp": tp, "device": "cuda", "cuda_graphs": graphs, "state_cache_bytes": 0}
        with gpu_engines.engine(folder, **options) as llm:
            rounds = [llm.generate(each, gpu_engines.GREEDY) for each in prompts()]
        texts[graphs] = [[output.token_ids for output in outputs] for outputs in rounds]
    assert texts["auto"] == texts["off"]
