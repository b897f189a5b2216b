"""A hybrid's repeated steps give the bits of plain ones, wherever its keys and values are."""

import pytest
import torch
from recorded_cases import PAGE_SIZE, SLOTS, STEPS, Rank
from shared_memory_cases import on_ranks

from sidewinder.collectives.base import SingleRank
from sidewinder.engine import recorded
from sidewinder.ops import native
from sidewinder.state.batch import pack

if not native.is_available():
    pytest.skip("built without the native module", allow_module_level=True)

HYBRIDS = (
    "zamba",
    "zamba, one head",
    "zamba, four heads",
    "zamba, first layer",
    "zamba2",
    "zamba2, adapted attention",
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "nemotron_h",
    "granite_experts",
    "nemotron_experts",
    "jamba",
    "jamba_experts",
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


def life(rank):
    """Sequences begin, grow over pages, end and are followed by others in their pages."""
    starts = dict.fromkeys(range(SLOTS), 0)
    assert not rank.check([0, 1], starts, tokens=4)
    served = []
    for turn in range(4):
        served += [rank.check(slots, starts) for slots in STEPS]
        rank.end(turn, starts)
        if turn % 2:
            rank.check([4, turn], starts, tokens=3)  # prompts in between
    return served


@pytest.fixture(autouse=True)
def few_pages(monkeypatch):
    """So that sequences outgrow their buffers."""
    monkeypatch.setattr(recorded, "FEWEST_PAGES", 2)


@torch.inference_mode()
@DTYPES
@pytest.mark.parametrize("family", HYBRIDS)
def test_repeated_steps_are_plain_steps(family, dtype):
    rank = Rank(family, SingleRank(), dtype)
    served = life(rank)
    assert all(served)
    assert not rank.recorded.refused
    steps = rank.recorded._steps
    assert {pages for _, pages in steps} >= {2, 4, 8}
    assert len(steps) < len(served) / 2, "most steps were repeated"


@DTYPES
@pytest.mark.parametrize("family", HYBRIDS)
def test_sums_over_shared_memory_are_repeated_too(family, dtype):
    @torch.inference_mode()
    def run(collectives):
        rank = Rank(family, collectives, dtype)
        return all(life(rank)), rank.recorded.refused

    assert on_ranks(2, run) == [(True, "")] * 2


@torch.inference_mode()
def test_pieces_of_several_heads_are_not():
    """Between three ranks with two heads the messages of x_proj are made by torch."""

    def run(collectives):
        with torch.inference_mode():
            rank = Rank("zamba", collectives)
            return rank.check_all(), rank.recorded.refused

    results = on_ranks(3, run)
    assert all("torch's operator" in refused for _, refused in results)
    assert [served for served, _ in results] == [[True] + [False] * (len(STEPS) - 1)] * 3


@torch.inference_mode()
def test_biases_of_sums_are_not():
    rank = Rank("granitemoehybrid, biases", SingleRank())
    assert rank.check_all() == [True] + [False] * (len(STEPS) - 1)
    assert "torch's operator" in rank.recorded.refused


@torch.inference_mode()
def test_all_batch_sizes_share_the_places():
    """Their buffers are as long as the longest text, so there must not be one for each size."""
    rank = Rank("zamba", SingleRank())
    starts = dict.fromkeys(range(SLOTS), 0)
    for slots in ([0], [1, 2], [0, 1, 2, 3]):
        assert rank.check(slots, starts)
    ((pages, buffers),) = rank.recorded._places.items()
    read = buffers.first(recorded.LARGEST_BATCH).read
    assert read.shape == (recorded.LARGEST_BATCH, pages * PAGE_SIZE)
    assert len(rank.recorded._steps) == 3


@torch.inference_mode()
def test_a_step_without_enough_pages_is_refused_before_it_runs():
    rank = Rank("zamba", SingleRank())
    starts = dict.fromkeys(range(SLOTS), 0)
    for _ in range(2):
        assert rank.check([0], starts)
    before = rank.pool.ssm[:, 0].clone()
    with pytest.raises(AssertionError, match="too few pages"):
        rank.recorded.forward(pack([[1]], [0], [2], [rank.pages[0]]))
    assert torch.equal(rank.pool.ssm[:, 0], before)
