"""The engine on a card against transformers: graphs on and off, one rank and several on it."""

import gpu_engines
import pytest
import torch

from sidewinder.ops.launching import EARLY_VARIABLE
from sidewinder.parallel.devices import SHARE_VARIABLE
from sidewinder.testing import TINY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("tp", "graphs"), [(1, "auto"), (1, "off"), (2, "auto"), (2, "off"), (4, "auto")]
)
@pytest.mark.parametrize("family", TINY)
def test_logits_and_texts(family, tp, graphs, tmp_path, monkeypatch):
    monkeypatch.setenv(SHARE_VARIABLE, "1")
    gpu_engines.check(family, tmp_path, tp=tp, cuda_graphs=graphs, device="cuda")


@pytest.mark.parametrize("family", TINY)
def test_kernels_that_wait(family, tmp_path, monkeypatch):
    """In all other tests they start while those before them end, where the GPU can do that."""
    monkeypatch.setenv(EARLY_VARIABLE, "0")
    gpu_engines.check(family, tmp_path, device="cuda")


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("tp", [2, 4])
def test_quantised_sums_in_graphs_change_no_text(codec, tp, tmp_path, monkeypatch):
    monkeypatch.setenv(SHARE_VARIABLE, "1")
    prompts = gpu_engines.FULL_BUCKET if codec == "int4" else gpu_engines.PROMPTS
    gpu_engines.check_graphs_change_nothing(
        "mamba", tmp_path, prompts, tp=tp, all_reduce=codec, device="cuda"
    )
