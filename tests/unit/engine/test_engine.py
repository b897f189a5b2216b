"""The engine over a toy model: outputs, increments, texts, metrics."""

import pytest
from toy_executor import ToyExecutor, toy_output, toy_score

from sidewinder.engine.engine import Engine
from sidewinder.engine.limits import Limits
from sidewinder.engine.request import Request
from sidewinder.sampling import SamplingParams

LIMITS = Limits(n_slots=2, max_step_tokens=6, max_logit_rows=8)


class Letters:
    """A toy tokenizer: token i is the i-th letter from "A"."""

    special_ids = frozenset[int]()

    def decode(self, ids, skip_special_tokens=True):  # noqa: ARG002
        return "".join(chr(65 + i) for i in ids)


def engine_and_executor():
    executor = ToyExecutor(LIMITS)
    return Engine(executor, LIMITS), executor


def request(number, prompt, **values):
    params = SamplingParams(**{"max_tokens": 6, "temperature": 0} | values)
    return Request(number, tuple(prompt), params)


def only_output(prompt, **values):
    engine, _ = engine_and_executor()
    engine.add(request(0, prompt, **values), Letters())
    (output,) = engine.run()
    return output


def test_run_returns_every_output():
    engine, _ = engine_and_executor()
    prompts = [[1, 2], list(range(15)), [9]]
    for number, prompt in enumerate(prompts):
        engine.add(request(number, prompt), Letters(), prompt=f"text {number}")
    outputs = {output.request_id: output for output in engine.run()}
    for number, prompt in enumerate(prompts):
        output = outputs[number]
        assert output.token_ids == toy_output(prompt, 6)
        assert output.text == Letters().decode(output.token_ids)
        assert (output.prompt, output.prompt_token_ids) == (f"text {number}", prompt)
        assert output.finish_reason == "length"
    assert not engine.has_work


def test_increments_join_to_the_output():
    engine, _ = engine_and_executor()
    engine.add(request(0, [1, 2]), Letters())
    parts = []
    while engine.has_work:
        parts += engine.step()
    output = parts[-1].output
    assert "".join(part.text for part in parts) == output.text
    assert [token for part in parts for token in part.token_ids] == output.token_ids
    assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].finish_reason == "length"


def test_a_stop_string_ends_the_text_and_frees_the_slot():
    full = Letters().decode(toy_output([1, 2], 6))
    stop = full[2:4]
    output = only_output([1, 2], stop=stop)
    assert output.text == full[:2]
    assert output.token_ids == toy_output([1, 2], 4)
    assert output.finish_reason == "stop"
    assert only_output([1, 2], stop=stop, include_stop_str_in_output=True).text == full[:4]


def test_a_stop_string_counts_from_min_tokens_on():
    full = Letters().decode(toy_output([1, 2], 6))
    output = only_output([1, 2], stop=[full[1], full[5]], min_tokens=3)
    assert output.text == full[:5]


def test_a_held_back_beginning_of_a_stop_string_comes_out_at_the_end():
    full = Letters().decode(toy_output([1, 2], 6))
    assert only_output([1, 2], stop=full[5] + "?").text == full


def test_a_stop_id_is_in_the_tokens_and_not_in_the_text():
    tokens = toy_output([1, 2], 6)
    output = only_output([1, 2], stop_token_ids=[tokens[3]])
    assert output.token_ids == tokens[:4]
    assert output.text == Letters().decode(tokens[:3])
    kept = only_output([1, 2], stop_token_ids=[tokens[3]], include_stop_str_in_output=True)
    assert kept.text == Letters().decode(tokens[:4])


def test_logprobs_of_output_and_prompt():
    output = only_output([1, 2, 3], logprobs=0, prompt_logprobs=0)
    assert output.logprobs == [toy_score(token) for token in output.token_ids]
    assert output.prompt_logprobs == [None, toy_score(2), toy_score(3)]
    assert only_output([1]).logprobs is None
    assert only_output([1], prompt_logprobs=0).prompt_logprobs == [None]


def test_prompt_logprobs_over_several_chunks():
    prompt = list(range(20))
    output = only_output(prompt, prompt_logprobs=0)
    assert output.prompt_logprobs == [None, *(toy_score(token) for token in prompt[1:])]


def test_without_a_tokenizer_the_text_is_empty():
    engine, _ = engine_and_executor()
    engine.add(request(0, [1, 2]))
    (output,) = engine.run()
    assert (output.text, output.token_ids) == ("", toy_output([1, 2], 6))


def test_abort_drops_a_request():
    engine, _ = engine_and_executor()
    engine.add(request(0, [1, 2]), Letters())
    engine.add(request(1, [3]), Letters())
    engine.step()
    assert engine.abort(0)
    assert not engine.abort(0)
    assert [output.request_id for output in engine.run()] == [1]
    assert engine.counters.aborted == 1


def test_metrics_and_counters():
    engine, _ = engine_and_executor()
    for number in range(3):
        engine.add(request(number, [1, 2, 3]), Letters())
    outputs = engine.run()
    for output in outputs:
        metrics = output.metrics
        assert 0 <= metrics.queue_s <= metrics.ttft_s <= metrics.total_s
        expected = (metrics.total_s - metrics.ttft_s) / 5
        assert metrics.tpot_s == pytest.approx(expected, abs=1e-9)
        assert (metrics.prompt_tokens, metrics.output_tokens) == (3, 6)
    assert outputs[-1].metrics.queue_s > outputs[0].metrics.queue_s, "two slots for three requests"
    counters = engine.counters
    assert (counters.prompt_tokens, counters.decode_tokens) == (9, 15)
    assert counters.finished == 3
    assert counters.steps == 12


def test_one_token_has_no_time_per_output_token():
    assert only_output([1], max_tokens=1).metrics.tpot_s is None
