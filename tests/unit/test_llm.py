"""`LLM` in one process: text in, text out, streams side by side."""

import json
import shutil

import numpy as np
import pytest
import torch
from llm_cases import GREEDY, PROMPTS, sampled

from sidewinder import LLM, SamplingParams
from sidewinder.testing import save_tokenizer


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


@pytest.mark.parametrize(
    ("settings", "neutral"),
    [
        ({"temperature": 0.3}, {"temperature": 1.0}),
        ({"top_k": 3}, {"top_k": 0}),
        ({"top_p": 0.2}, {"top_p": 1.0}),
        ({"min_p": 0.6}, {"min_p": 0.0}),
        ({"repetition_penalty": 50.0}, {"repetition_penalty": 1.0}),
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_is_left_open_is_the_generation_configs(folder, tmp_path, settings, neutral):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps(settings))

    def text(llm, **given):
        params = SamplingParams(max_tokens=16, seed=9, ignore_eos=True, **given)
        return llm.generate([[5, 6, 7]], params)[0].token_ids

    with LLM(folder, dtype="float32") as llm, LLM(other, dtype="float32") as narrower:
        assert text(llm) == text(llm, **neutral) == text(narrower, **neutral)
        assert text(narrower) == text(narrower, **settings) == text(llm, **settings)
        assert text(narrower) != text(llm)
    with LLM(other, dtype="float32", generation_config="none") as unset:
        assert text(unset) == text(unset, **neutral)


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
