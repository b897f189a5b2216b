"""Decode steps for whose graph a GPU has no memory run without one."""

import pytest
from full_recorder import FullRecorder

from sidewinder import LLM, SamplingParams
from sidewinder.engine import runner as runner_module
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.decode_graphs import DecodeGraphs
from sidewinder.engine.recorders import StepRecorder
from sidewinder.testing import save_tiny

PROMPTS = [[5, 80, 12, 44, 7], [9], list(range(30, 50)), [3, 3]]
PARAMS = [
    SamplingParams(max_tokens=n, temperature=temperature, top_k=20, seed=n)
    for n, temperature in ((3, 0), (9, 0.9), (14, 0), (24, 0.9))
]
"""Batches of four, three, two and one; greedy ones, too: several graphs."""


def texts(folder, **options):
    with LLM(
        folder, dtype="float32", device="cpu", max_batch_size=4, kv_cache_tokens=1024, **options
    ) as llm:
        return [output.token_ids for output in llm.generate(PROMPTS, PARAMS)]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("n_graphs", [0, 1, 2])
@pytest.mark.parametrize("family", ["mamba", "zamba"])
def test_texts_are_the_same(family, n_graphs, ended, tmp_path, monkeypatch, caplog):
    """Those that have one go on; the rest are not tried again, be they started ahead or not."""
    folder, outcomes, start = save_tiny(family, tmp_path), [], DecodeGraphs.start
    expected = texts(folder)
    full = FullRecorder(ended, n_graphs)

    def noted(*step):
        started = start(*step)
        outcomes.append(started is not None)
        return started

    monkeypatch.setattr(runner_module, "recorder_for", lambda *_: full)
    monkeypatch.setattr(DecodeGraphs, "start", noted)
    assert texts(folder) == expected
    assert full.tried == n_graphs + 1
    assert (True in outcomes) == (n_graphs > 0)
    assert outcomes.count(False) > 1
    warnings = [
        record.getMessage() for record in caplog.records if "CUDA graph" in record.msg % record.args
    ]
    assert len(warnings) == 1
    assert "a decode step of" in warnings[0]
    assert (
        "decode steps of sizes that have no graph yet run without one from here on" in warnings[0]
    )


@pytest.mark.parametrize(
    ("says", "wants"),
    [
        ("CUDA error: out of memory", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_whoever_has_no_memory_says_so(says, wants):
    """Torch's allocator alone has an error of its own for it."""
    counter = CallCounter()

    class Failing:
        def record(self, _):
            raise RuntimeError(says)

    steps = StepRecorder(Failing(), counter, 1, "steps")
    if wants:
        assert steps.record(lambda: None, "a step") is None
        assert not steps.has_room
    else:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            steps.record(lambda: None, "a step")
