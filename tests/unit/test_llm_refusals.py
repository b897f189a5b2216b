"""What `LLM` refuses, and how it ends."""

import math
import shutil

import pytest
import torch
from llm_cases import GREEDY, VOCAB, make_model
from safetensors.torch import load_file, save_file

from sidewinder import LLM, SamplingParams
from sidewinder.ops import native
from sidewinder.testing import save_tokenizer


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "prompt is empty"),
        ([], "no prompt"),
        ([[]], "prompt is empty"),
        (["fine", ""], "prompt is empty"),
        ([[1, 2], []], "prompt is empty"),
        ([[1, VOCAB]], f"token id {VOCAB} at position 1 .* 0 to {VOCAB - 1}"),
        ([[-1]], "token id -1 at position 0"),
        ([[1, 2.5]], "2.5 at position 1 is not a token id"),
        ([[1, True]], "True at position 1 is not a token id"),
        ([[1, "a"]], "'a' at position 1 is not a token id"),
        (3, "type int"),
        (None, "type NoneType"),
        ([None], "type NoneType"),
        ([{"prompt": "x"}], "type dict"),
        (b"bytes", "type bytes"),
    ],
    ids=str,
)
def test_prompts_that_cannot_run_are_refused(llm, prompts, message):
    for method in (llm.generate, llm.logits, llm.score):
        with pytest.raises(ValueError, match=message):
            method(prompts)
    assert not llm.generate([[1]], GREEDY)[0].text.startswith("error")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 5}, "are not SamplingParams"),
        ([GREEDY], "1 params for 2 prompts"),
        ([GREEDY, None], "None are not SamplingParams"),
        (SamplingParams(stop_token_ids=[VOCAB]), f"{VOCAB} is outside the vocabulary"),
        (SamplingParams(max_tokens=98), "exceed max_model_len=100"),
    ],
    ids=["dict", "too-few", "none", "stop-id", "too-long"],
)
def test_params_that_cannot_run_are_refused(llm, params, message):
    with pytest.raises(ValueError, match=message):
        llm.generate([[1], [1, 2, 3]], params)


def test_max_model_len_holds_everywhere(llm, folder):
    fits, too_long = [7] * 100, [7] * 101
    assert llm.logits([fits])[0].shape == (100, VOCAB)
    assert llm.score([fits])[0].shape == (99,)
    for call in (llm.logits, llm.score):
        with pytest.raises(ValueError, match="101 tokens exceed max_model_len=100"):
            call([too_long])
    with pytest.raises(ValueError, match="101 tokens exceed max_model_len=100"):
        llm.perplexity(too_long)
    with pytest.raises(ValueError, match=r"100 tokens and max_tokens=1 exceed"):
        llm.stream(fits, SamplingParams(max_tokens=1))
    params = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)
    assert len(llm.generate([[7] * 90], params)[0].token_ids) == 10
    with LLM(folder, dtype="float32") as free, pytest.raises(ValueError, match="max_tokens=None"):
        free.generate([[7]], params)


def test_one_token_has_no_perplexity(llm):
    with pytest.raises(ValueError, match="at least two tokens"):
        llm.perplexity([7])


def test_unknown_options_are_refused(folder):
    with pytest.raises(ValueError, match="unknown option tensor_parallel"):
        LLM(folder, tensor_parallel=2)


def test_too_many_ranks_name_the_valid_ones(folder):
    with pytest.raises(ValueError, match=r"tp=1000 .* valid tp: 1 to 48"):
        LLM(folder, tp=1000)


def test_a_request_beyond_the_kv_cache_is_refused(tmp_path):
    make_model("zamba", tmp_path)
    with LLM(tmp_path, dtype="float32", kv_cache_tokens=40) as llm:
        assert llm.report()["kv_cache_tokens"] == 48
        assert len(llm.generate([[5] * 30], SamplingParams(max_tokens=19))[0].token_ids) <= 19
        with pytest.raises(ValueError, match=r"holds 48; .*kv_cache_tokens to 64"):
            llm.generate([[5] * 30], SamplingParams(max_tokens=20))
        with pytest.raises(ValueError, match="holds 48"):
            llm.logits([[5] * 49])


def test_token_ids_need_no_tokenizer(folder, llm, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    with LLM(bare, dtype="float32") as other:
        with pytest.warns(UserWarning, match="no text"):
            (output,) = other.generate([[5, 6, 7]], GREEDY)
        assert output.token_ids == llm.generate([[5, 6, 7]], GREEDY)[0].token_ids
        assert output.text == ""
        for call in (
            lambda: other.generate("text"),
            lambda: other.generate([[5]], SamplingParams(stop="x")),
            lambda: other.encode("text"),
        ):
            with pytest.raises(ValueError, match="no usable tokenizer"):
                call()
    with LLM(bare, dtype="float32", tokenizer=str(folder)) as other:
        assert other.generate("the", GREEDY)[0].text == llm.generate("the", GREEDY)[0].text


def test_closed_means_closed(folder):
    llm = LLM(folder, dtype="float32")
    stream = llm.stream([5], GREEDY)
    next(stream)
    llm.close()
    llm.close()
    for call in (lambda: next(stream), lambda: llm.generate([[5]]), lambda: llm.logits([[5]])):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_threads_are_restored(folder):
    before = torch.get_num_threads()
    wanted = before + 1
    # Where our kernels do the work, torch's threads would only be in their way
    # (`cores.prepare_for_steps`).
    ours = native.isa() not in (None, "portable")
    with LLM(folder, dtype="float32", threads=wanted):
        assert torch.get_num_threads() == (1 if ours else wanted)
    assert torch.get_num_threads() == before


def test_weights_that_are_not_finite_raise_and_close(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    file = broken / "model.safetensors"
    weights = load_file(file)
    weights["backbone.norm_f.weight"][3] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    llm = LLM(broken, dtype="float32")
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        llm.generate([[5, 6]], GREEDY)
    with pytest.raises(RuntimeError, match="closed: a step failed"):
        llm.generate([[5, 6]], GREEDY)


def test_random_weights_need_only_a_config(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    save_tokenizer(tmp_path)
    with LLM(tmp_path, dtype="bfloat16", load_format="random") as llm:
        assert len(llm.generate("the", GREEDY)[0].token_ids) == GREEDY.max_tokens


def test_what_is_no_kept_state(llm):
    for call in (llm.release, lambda state: llm.resume(state, [1])):
        with pytest.raises(ValueError, match=r"'x' is no kept state; give what snapshot"):
            call("x")
    state = llm.snapshot([1, 2, 3])
    with pytest.raises(ValueError, match="type SamplingParams"):
        llm.resume(state, SamplingParams())
    llm.release(state)
