"""`LLM` in one process, end to end: real checkpoints, text in, text out."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sidewinder import LLM, SamplingParams
from sidewinder.testing import TINY, assert_close, save_tokenizer, tiny_oracle

VOCAB = 287
"""What `save_tokenizer` makes; not divisible by 2, 3 or 4."""

TOLERANCE = 1e-4
PROMPTS = [[5, 17, 200], list(range(40, 63)), [9]]
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module", autouse=True)
def poison():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIDEWINDER_POISON", "1")
        yield


def make_model(family, folder):
    oracle = tiny_oracle(family, vocab_size=VOCAB, tie_word_embeddings=False)
    oracle.save_pretrained(folder)
    save_tokenizer(folder)
    return oracle


@pytest.fixture(scope="module", params=TINY)
def family(request, tmp_path_factory):
    """(folder, oracle, LLM) of one family; three slots and seven tokens per step."""
    folder = tmp_path_factory.mktemp(request.param)
    oracle = make_model(request.param, folder)
    with LLM(folder, dtype="float32", max_step_tokens=7, max_batch_size=3) as llm:
        yield folder, oracle, llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mamba")
    make_model("mamba", folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, dtype="float32", max_batch_size=4, max_model_len=100) as llm:
        yield llm


@torch.no_grad()
def oracle_logits(oracle, tokens):
    return oracle(torch.tensor([tokens]), use_cache=False).logits[0].float()


def plain_greedy(oracle, prompt, n_tokens):
    """Greedy tokens from whole forwards, and whether each is away from a near-tie."""
    tokens, certain = list(prompt), []
    for _ in range(n_tokens):
        logits = oracle_logits(oracle, tokens)[-1]
        best, second = logits.topk(2).values
        certain.append(bool(best - second > 2 * TOLERANCE * logits.abs().max()))
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], certain


# --- every family against transformers -----------------------------------------------------------


def test_greedy_equals_a_plain_loop(family):
    _, oracle, llm = family
    outputs = llm.generate([*PROMPTS, PROMPTS[0]], GREEDY)
    assert outputs[3].token_ids == outputs[0].token_ids
    for prompt, output in zip(PROMPTS, outputs, strict=False):
        expected, certain = plain_greedy(oracle, prompt, GREEDY.max_tokens)
        assert sum(certain) > len(certain) // 2, "hardly any token is certain; the test is void"
        n_sure = certain.index(False) if False in certain else len(certain)
        assert output.token_ids[:n_sure] == expected[:n_sure]
        assert len(output.token_ids) == GREEDY.max_tokens
        assert output.finish_reason == "length"


def test_logits_equal_transformers(family):
    _, oracle, llm = family
    for prompt, logits in zip(PROMPTS, llm.logits(PROMPTS), strict=True):
        assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
        assert_close(f"logits of {len(prompt)}", oracle_logits(oracle, prompt), logits, TOLERANCE)


def test_scores_equal_transformers(family):
    _, oracle, llm = family
    for prompt, scores in zip(PROMPTS, llm.score(PROMPTS), strict=True):
        logprobs = torch.log_softmax(oracle_logits(oracle, prompt), dim=-1)
        expected = logprobs[torch.arange(len(prompt) - 1), prompt[1:]]
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)
    score = llm.perplexity(PROMPTS[1])
    total = float(llm.score([PROMPTS[1]])[0].double().sum())
    assert score.n_predicted == len(PROMPTS[1]) - 1
    assert score.logprob == pytest.approx(total, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(-total / score.n_predicted), rel=1e-4)


def test_logprobs_equal_transformers(family):
    _, oracle, llm = family
    params = SamplingParams(
        max_tokens=5, temperature=0.9, seed=3, logprobs=4, prompt_logprobs=2, ignore_eos=True
    )
    (output,) = llm.generate([PROMPTS[1]], params)
    tokens = output.prompt_token_ids + output.token_ids
    expected = torch.log_softmax(oracle_logits(oracle, tokens), dim=-1)
    reports = output.prompt_logprobs + output.logprobs
    assert reports[0] is None
    for position in range(1, len(tokens)):
        row, report = expected[position - 1], reports[position]
        assert report.token_id == tokens[position]
        assert report.logprob == pytest.approx(float(row[report.token_id]), rel=1e-3, abs=1e-3)
        n_top = 2 if position < len(output.prompt_token_ids) else 4
        top = [logprob for _, logprob in report.top]
        assert top == pytest.approx(row.topk(n_top).values.tolist(), rel=1e-3, abs=1e-3)


def test_seeded_text_does_not_depend_on_the_batch_or_the_chunks(family):
    folder, _, llm = family
    params = [
        SamplingParams(max_tokens=10, temperature=1.0, seed=1),
        SamplingParams(max_tokens=14, temperature=0.7, top_p=0.9, seed=2, frequency_penalty=0.5),
        SamplingParams(max_tokens=6, temperature=1.2, top_k=20, seed=3),
        SamplingParams(max_tokens=9, temperature=1.0, repetition_penalty=1.2, seed=1),
    ]
    prompts = [PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[1][:11]]
    together = [output.token_ids for output in llm.generate(prompts, params)]
    alone = [llm.generate([p], own)[0].token_ids for p, own in zip(prompts, params, strict=True)]
    assert together == alone
    for max_step_tokens in (1, 2048):
        with LLM(folder, dtype="float32", max_step_tokens=max_step_tokens) as other:
            assert [output.token_ids for output in other.generate(prompts, params)] == together


def test_bfloat16_runs_near_float32(family):
    folder, oracle, _ = family
    with LLM(folder, dtype="bfloat16", state_dtype="bfloat16") as llm:
        assert llm.report()["dtype"] == "bfloat16"
        (logits,) = llm.logits([PROMPTS[1]])
        assert_close("bfloat16", oracle_logits(oracle, PROMPTS[1]), logits, 0.1)
        assert len(llm.generate([PROMPTS[1]], GREEDY)[0].token_ids) == GREEDY.max_tokens


# --- text ----------------------------------------------------------------------------------------


def sampled(**values):
    defaults = {"max_tokens": 40, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    return SamplingParams(**defaults | values)


def test_text_is_the_decoded_tokens(llm):
    (output,) = llm.generate("the return", sampled())
    assert output.prompt == "the return"
    assert output.prompt_token_ids == llm.encode("the return")
    assert output.text == llm.decode(output.token_ids)


def test_streams_join_to_the_generated_text(llm):
    (whole,) = llm.generate(["def self"], sampled())
    parts = list(llm.stream("def self", sampled()))
    assert "".join(part.text for part in parts) == whole.text
    assert [token for part in parts for token in part.token_ids] == whole.token_ids
    assert parts[-1].output.text == whole.text
    assert parts[-1].finish_reason == parts[-1].output.finish_reason == "length"
    assert all(part.output is None for part in parts[:-1])


def test_a_stop_string_across_tokens(llm):
    (whole,) = llm.generate("the", sampled())
    characters = whole.text
    start = next(i for i in range(5, 30) if characters[i : i + 3] not in characters[: i + 2])
    stop = characters[start : start + 3]
    parts = list(llm.stream("the", sampled(stop=stop)))
    output = parts[-1].output
    assert output.text == characters[:start] == "".join(part.text for part in parts)
    assert output.finish_reason == "stop"
    assert output.token_ids == whole.token_ids[: len(output.token_ids)]
    assert stop in llm.decode(output.token_ids)
    assert stop not in llm.decode(output.token_ids[:-1])
    (kept,) = llm.generate("the", sampled(stop=[stop], include_stop_str_in_output=True))
    assert kept.text == characters[: start + 3]


def test_ending_ids_min_tokens_and_ignore_eos(folder, tmp_path):
    with LLM(folder, dtype="float32") as llm:
        (whole,) = llm.generate("self", sampled())
    ending = whole.token_ids[7]
    first = whole.token_ids.index(ending)
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"eos_token_id": ending}
    (other / "config.json").write_text(json.dumps(config))
    (other / "generation_config.json").write_text("{}")
    with LLM(other, dtype="float32") as llm:
        (stopped,) = llm.generate("self", sampled(ignore_eos=False))
        assert stopped.token_ids == whole.token_ids[: first + 1]
        assert stopped.finish_reason == "stop"
        assert stopped.text == llm.decode(whole.token_ids[:first])
        assert llm.generate("self", sampled())[0].token_ids == whole.token_ids
        (longer,) = llm.generate("self", sampled(ignore_eos=False, min_tokens=first + 5))
        assert len(longer.token_ids) >= first + 5
        assert ending not in longer.token_ids[: first + 4]
        (by_id,) = llm.generate("self", sampled(stop_token_ids=[whole.token_ids[3]]))
        assert by_id.finish_reason == "stop"
        assert by_id.token_ids[-1] == whole.token_ids[3]


def test_bos_as_the_tokenizer_puts_it(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    save_tokenizer(other, bos=True)
    with LLM(other, dtype="float32") as llm:
        (output,) = llm.generate("the", GREEDY)
        assert output.prompt_token_ids[0] == 0
        (same,) = llm.generate([output.prompt_token_ids], GREEDY)
        assert same.token_ids == output.token_ids


def test_chat_continues_the_template(llm):
    messages = [{"role": "user", "content": "the"}]
    assert llm.decode(llm.chat_prompt(messages)) == "user: the\nassistant:"
    answer = llm.chat(messages, GREEDY)
    assert answer.token_ids == llm.generate("user: the\nassistant:", GREEDY)[0].token_ids


def test_default_temperature_is_the_generation_configs(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "generation_config.json").write_text('{"temperature": 0.3}')
    with LLM(folder, dtype="float32") as llm, LLM(other, dtype="float32") as cooler:
        prompt, free = [5, 6, 7], {"temperature": None, "seed": 9}
        one = llm.generate([prompt], sampled(temperature=1.0, seed=9))[0].token_ids
        low = llm.generate([prompt], sampled(temperature=0.3, seed=9))[0].token_ids
        assert one != low
        assert llm.generate([prompt], sampled(**free))[0].token_ids == one
        assert cooler.generate([prompt], sampled(**free))[0].token_ids == low


def test_engine_seed_repeats_a_run(folder):
    def run(seed):
        with LLM(folder, dtype="float32", seed=seed) as llm:
            params = sampled(seed=None)
            return [output.token_ids for output in llm.generate([[5, 6], [5, 6]], params)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    first, second = run(1)
    assert first != second, "requests draw from streams of their own"


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor], ids=["tuple", "numpy", "torch"])
def test_token_ids_come_in_any_sequence(llm, kind):
    expected = llm.generate([[5, 6, 7]], GREEDY)[0].token_ids
    assert llm.generate(kind([5, 6, 7]), GREEDY)[0].token_ids == expected
    assert llm.generate([kind([5, 6, 7])], GREEDY)[0].token_ids == expected


def test_more_prompts_than_slots_keep_their_order(llm):
    prompts = [[token] for token in range(10, 21)]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt_token_ids for output in outputs] == prompts
    for output in outputs:
        assert output.token_ids == llm.generate([output.prompt_token_ids], GREEDY)[0].token_ids


def test_metrics_are_filled(llm):
    (output,) = llm.generate([[5, 6]], GREEDY)
    metrics = output.metrics
    assert 0 <= metrics.queue_s <= metrics.ttft_s <= metrics.total_s
    assert metrics.tpot_s > 0
    assert (metrics.prompt_tokens, metrics.output_tokens) == (2, GREEDY.max_tokens)


# --- streams side by side ------------------------------------------------------------------------


def test_interleaved_streams_and_calls_do_not_disturb_each_other(llm):
    expected = [llm.generate([prompt], GREEDY)[0].token_ids for prompt in PROMPTS]
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS]
    found = [[], [], []]
    for _ in range(GREEDY.max_tokens):
        for tokens, stream in zip(found, streams, strict=True):
            tokens += next(stream).token_ids
        assert llm.generate([PROMPTS[0]], GREEDY)[0].token_ids == expected[0]
    assert found == expected
    assert [list(stream) for stream in streams] == [[], [], []]


def test_a_dropped_stream_frees_its_slot(folder):
    with LLM(folder, dtype="float32", max_batch_size=1) as llm:
        endless = sampled(max_tokens=100_000)
        for _ in range(3):
            stream = llm.stream([5, 6], endless)
            next(stream)
            stream.close()
        assert llm.counters.aborted == 3
        assert len(llm.generate([[5, 6]], GREEDY)[0].token_ids) == GREEDY.max_tokens


# --- refusals ------------------------------------------------------------------------------------


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


# --- the end -------------------------------------------------------------------------------------


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
    with LLM(folder, dtype="float32", threads=wanted):
        assert torch.get_num_threads() == wanted
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
