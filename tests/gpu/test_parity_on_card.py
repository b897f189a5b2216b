"""The CPU's parity tests of models again, with everything on a card: ranks are threads there."""

import parity_harness
import pytest
import torch
from test_parity import (  # noqa: F401
    checkpoint,
    checkpoint_of,
    test_a_long_sequence_in_whole_and_in_chunks,
    test_bfloat16_is_as_close_as_the_oracles_own,
    test_mixed_steps_in_reused_slots,
    test_neighbours_do_not_matter,
    test_random_configurations,
    test_step_by_step,
    test_whole_and_chunked,
    test_whole_and_chunked_on_ranks,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def on_card(monkeypatch):
    monkeypatch.setattr(parity_harness, "DEVICE", "cuda")
