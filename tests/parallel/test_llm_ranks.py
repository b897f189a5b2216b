"""`LLM` on real ranks gives what one process gives."""

import os
import subprocess
import sys
import time

import pytest
import torch

from sidewinder import LLM, SamplingParams
from sidewinder.testing import assert_close, save_tiny, save_tokenizer

PROMPTS = [[5, 17, 200], list(range(40, 63)), [9]]
PARAMS = [
    SamplingParams(max_tokens=12, temperature=0, ignore_eos=True),
    SamplingParams(max_tokens=9, temperature=1.0, seed=4, logprobs=1, ignore_eos=True),
    SamplingParams(max_tokens=6, temperature=0.8, top_p=0.9, seed=5, prompt_logprobs=0),
]
OPTIONS = {"device": "cpu", "dtype": "float32", "threads": 1, "max_step_tokens": 7}


@pytest.fixture(
    scope="module",
    params=[
        "falcon_mamba",
        "zamba",
        "zamba2",
        "bamba",
        "nemotron_experts",
        "falcon_h1",
        "jamba_experts",
    ],
)
def pair(request, tmp_path_factory):
    """The same model on one rank and on two."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, folder, vocab_size=287, tie_word_embeddings=False)
    save_tokenizer(folder)
    with LLM(folder, **OPTIONS) as one, LLM(folder, tp=2, **OPTIONS) as two:
        yield one, two


def test_generation_is_the_same(pair):
    one, two = pair
    outputs = zip(one.generate(PROMPTS, PARAMS), two.generate(PROMPTS, PARAMS), strict=True)
    for expected, output in outputs:
        assert output.token_ids == expected.token_ids
        assert output.text == expected.text
        assert output.finish_reason == expected.finish_reason
        for field in ("logprobs", "prompt_logprobs"):
            assert logprobs(output, field) == pytest.approx(logprobs(expected, field), abs=1e-3)


def logprobs(output, field):
    return [report.logprob for report in getattr(output, field) or [] if report is not None]


def test_logits_and_scores_are_the_same(pair):
    one, two = pair
    for expected, logits in zip(one.logits(PROMPTS), two.logits(PROMPTS), strict=True):
        assert_close("logits", expected, logits, 1e-4)
    for expected, scores in zip(one.score(PROMPTS), two.score(PROMPTS), strict=True):
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


def test_streams_interleave(pair):
    _, two = pair
    expected = [output.token_ids for output in two.generate(PROMPTS, PARAMS)]
    streams = [two.stream(*arguments) for arguments in zip(PROMPTS, PARAMS, strict=True)]
    found = [[], [], []]
    for _ in range(12):
        for tokens, stream in zip(found, streams, strict=True):
            tokens += [token for part in [next(stream, None)] if part for token in part.token_ids]
    assert found == expected


def test_the_report_tells_of_the_ranks(pair):
    for llm in pair:
        llm.generate([[9]], PARAMS[0])  # A step that only decodes.
    one, two = (llm.report() for llm in pair)
    assert two["tp"] == 2
    assert two["weight_bytes_per_rank"] < 0.75 * one["weight_bytes_per_rank"]
    assert two["state_bytes_per_sequence"] == one["state_bytes_per_sequence"] / 2
    assert one["collectives_per_token"] == 0
    assert two["collectives_per_token"] >= 3
    assert two["collectives"] != "none"


def test_refusals_leave_the_ranks_alive(pair):
    _, two = pair
    with pytest.raises(ValueError, match="outside the vocabulary"):
        two.generate([[287]])
    assert two.generate([[9]], PARAMS[0])[0].token_ids


SCRIPT = """
import os, signal, sys, threading
from sidewinder import LLM, SamplingParams

def run_out(stream, before=lambda: None):
    try:
        before()
        for part in stream:
            pass
    except BaseException as error:
        print(type(error).__name__, error, flush=True)

llm = LLM(sys.argv[1], tp=2, device="cpu", dtype="float32", threads=1, timeout_s=5)
pids = llm._executor.pids
print("pids", *pids, flush=True)
long = SamplingParams(max_tokens=100_000, ignore_eos=True)
stream = llm.stream([5, 6], long)
next(stream)
run_out(stream, threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start)
print("generated", len(llm.generate([[5]])[0].token_ids), flush=True)
stream = llm.stream([5, 6], long)
next(stream)
os.kill(pids[1], signal.SIGKILL)
run_out(stream)
try:
    llm.generate([[5]])
except RuntimeError as error:
    print("afterwards:", error, flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_leaves_the_ranks_usable_and_a_killed_rank_ends_them(tmp_path):
    save_tiny("mamba", tmp_path, eos_token_id=None)
    save_tokenizer(tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    first, interrupted, generated, failed, afterwards = run.stdout.splitlines()
    assert interrupted.strip() == "KeyboardInterrupt"
    assert generated == "generated 16"
    assert failed.startswith("RankFailure rank 1 of 2")
    assert afterwards.startswith("afterwards: this LLM is closed: a step failed (RankFailure")
    deadline = time.monotonic() + 10
    pids = [int(pid) for pid in first.split()[1:]]
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, pids))


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


TORCHRUN = """
import os, sys
from sidewinder import LLM, SamplingParams
with LLM(sys.argv[1], tp=2, device="cpu", dtype="float32", launch="torchrun") as llm:
    params = SamplingParams(max_tokens=8, temperature=1.0, logprobs=0)
    outputs = llm.generate([[5, 6], [7]], params)
    scores = llm.score([[5, 6, 7]])[0].tolist()
tokens = [output.token_ids for output in outputs]
logprobs = [len(output.logprobs) for output in outputs]
open(f"{sys.argv[2]}/{os.environ['RANK']}", "w").write(repr((tokens, logprobs, scores)))
"""


@pytest.mark.slow
def test_torchrun_ranks_get_the_same_outputs(tmp_path):
    """Without a seed too: the ranks agree on one."""
    model, script = save_tiny("mamba2", tmp_path / "model"), tmp_path / "script.py"
    script.write_text(TORCHRUN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", script, model, tmp_path]
    subprocess.run(command, timeout=300, check=True, capture_output=True)
    first, second = (tmp_path / "0").read_text(), (tmp_path / "1").read_text()
    assert first == second
