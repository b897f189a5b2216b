"""POST /v1/completions: texts, streams, logprobs, echo, and independence of the batch."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

BASE = {"model": "tiny", "max_tokens": 12, "seed": 5, "ignore_eos": True}


def post(client, **fields):
    response = client.post("/v1/completions", json=BASE | fields)
    assert response.status_code == 200, response.text
    return response.json()


def events(client, path="/v1/completions", **fields):
    """The JSON events of a stream, `[DONE]` checked and left out."""
    with client.stream("POST", path, json=fields | {"stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_reply_has_openai_shape(client):
    reply = post(client, prompt="def f")
    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["model"] == "tiny"
    (choice,) = reply["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert choice["finish_reason"] == "length"
    usage = reply["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


def test_same_texts_as_offline(client, offline_texts):
    reply = post(client, prompt=["def f", "the self", "in on er"], temperature=1.5)
    assert [choice["text"] for choice in reply["choices"]] == offline_texts
    other = post(client, prompt="def f", temperature=1.5, seed=6)["choices"][0]["text"]
    assert other != offline_texts[0]


def test_text_does_not_depend_on_the_batch(server):
    prompts = [f"self.{'x' * n}" for n in range(1, 13)]

    def text(prompt):
        with server.client() as client:
            return post(client, prompt=prompt, temperature=0.9)["choices"][0]["text"]

    alone = [text(prompt) for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(text, prompts)) == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("n", [1, 3])
def test_stream_equals_whole(client, n):
    fields = {"prompt": ["in self", "return"], "n": n, "logprobs": 2}
    whole = post(client, **fields)
    options = {"stream_options": {"include_usage": True}}
    parts = events(client, **BASE, **fields, **options)
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    assert all(part["usage"] is None for part in parts[:-1])
    for choice in whole["choices"]:
        own = [c for part in parts for c in part["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        for name in choice["logprobs"]:
            joined = [value for part in own for value in part["logprobs"][name]]
            assert joined == choice["logprobs"][name]
        assert [part["finish_reason"] for part in own][-1] == choice["finish_reason"]
        assert not any(part["finish_reason"] for part in own[:-1])


def test_choices_of_a_seed_differ_and_repeat(client):
    texts = [choice["text"] for choice in post(client, prompt="on", n=3)["choices"]]
    assert len(set(texts)) == 3
    assert post(client, prompt="on", seed=6)["choices"][0]["text"] == texts[1]


def test_prompts_as_text_and_as_token_ids(client):
    tokens = client.post("/tokenize", json={"prompt": "at the end"}).json()["tokens"]
    forms = ["at the end", ["at the end"], tokens, [tokens]]
    texts = {post(client, prompt=form)["choices"][0]["text"] for form in forms}
    assert len(texts) == 1
    assert len(post(client, prompt=["a", "b", "c"])["choices"]) == 3
    assert len(post(client, prompt=[[1], [2, 3]])["choices"]) == 2


def test_logprobs(client):
    logprobs = post(client, prompt="er", logprobs=3, temperature=0)["choices"][0]["logprobs"]
    assert {len(values) for values in logprobs.values()} == {12}
    for name, own, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert own == pytest.approx(max(top.values()))
        assert name in top


def test_echo_scores_the_prompt(client):
    tokens = client.post("/tokenize", json={"prompt": "the self"}).json()["tokens"]
    expected = server_scores(client, tokens)
    for prompt in ("the self", tokens):
        choice = post(client, prompt=prompt, echo=True, logprobs=1, max_tokens=1)["choices"][0]
        assert choice["text"].startswith("the self")
        scores = choice["logprobs"]["token_logprobs"]
        assert len(scores) == len(tokens) + 1
        assert scores[0] is None
        assert scores[1:-1] == pytest.approx(expected)
    assert choice["logprobs"]["text_offset"][0] == 0
    streamed = events(client, **BASE | {"max_tokens": 1}, prompt=tokens, echo=True, logprobs=1)
    assert "".join(part["choices"][0]["text"] for part in streamed) == choice["text"]
    assert (
        streamed[0]["choices"][0]["logprobs"]["token_logprobs"][: len(tokens)]
        == (scores[: len(tokens)])
    )


def server_scores(client, tokens):
    """Logprob of every prompt token after the first, another way: `prompt_logprobs`."""
    reply = post(client, prompt=tokens, prompt_logprobs=0)
    scores = reply["choices"][0]["prompt_logprobs"]
    assert scores[0] is None
    pairs = zip(scores[1:], tokens[1:], strict=True)
    return [entry[str(token)]["logprob"] for entry, token in pairs]


def test_only_the_prompt(client):
    reply = post(client, prompt="the self", echo=True, logprobs=1, max_tokens=0)
    (choice,) = reply["choices"]
    assert choice["text"] == "the self"
    assert reply["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == reply["usage"]["prompt_tokens"]
    assert "".join(choice["logprobs"]["tokens"]) == "the self"
    with_token = post(client, prompt="the self", echo=True, logprobs=1, max_tokens=1)
    expected = with_token["choices"][0]["logprobs"]["token_logprobs"][:-1]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected[1:])


def test_long_prompt_in_chunks_has_all_its_scores(client):
    tokens = [1 + n % 250 for n in range(150)]  # more than two steps of 64 tokens
    assert len(server_scores(client, tokens)) == 149


def test_stops(client):
    plain = post(client, prompt="in", temperature=0)["choices"][0]["text"]
    stop = plain[3:5]
    for form in (stop, ["\x00never", stop]):
        choice = post(client, prompt="in", temperature=0, stop=form)["choices"][0]
        assert choice["text"] == plain[: plain.index(stop)]
        assert choice["finish_reason"] == "stop"
    kept = post(client, prompt="in", temperature=0, stop=stop, include_stop_str_in_output=True)
    assert kept["choices"][0]["text"] == plain[: plain.index(stop)] + stop
    parts = events(client, **BASE, prompt="in", temperature=0, stop=stop)
    assert "".join(part["choices"][0]["text"] for part in parts) == plain[: plain.index(stop)]


def test_stop_token_ids_and_min_tokens(client):
    tokens = client.post("/tokenize", json={"prompt": "in"}).json()["tokens"]
    scores = post(client, prompt=[*tokens, 5], prompt_logprobs=1)["choices"][0]["prompt_logprobs"]
    (first,) = [int(token) for token, entry in scores[-1].items() if entry["rank"] == 1]
    fields = {"prompt": tokens, "temperature": 0, "ignore_eos": False, "stop_token_ids": [first]}
    ended = post(client, **fields)
    assert ended["usage"]["completion_tokens"] == 1
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert post(client, **fields, min_tokens=4)["usage"]["completion_tokens"] >= 4


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 1},
        {"top_p": 1e-9},
        {"min_p": 1.0},
        {"temperature": 0},
        {"top_k": -1, "temperature": 0},
    ],
    ids=str,
)
def test_filters_reach_the_sampler(client, fields):
    """Each of these leaves the most likely token only."""
    greedy = post(client, prompt="def", temperature=0)["choices"][0]["text"]
    assert post(client, prompt="def", **fields)["choices"][0]["text"] == greedy


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_reach_the_sampler(client, name):
    fields = {"prompt": "ab", "temperature": 0, "max_tokens": 40}
    plain = post(client, **fields)["choices"][0]["text"]
    assert post(client, **fields, **{name: 2.0})["choices"][0]["text"] != plain


def _text(part):
    return "".join(choice.get("text") or "" for choice in part["choices"])


def test_usage_so_far_in_every_event(client):
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    parts = events(client, **{**BASE, "max_tokens": 120}, prompt="def", **options)
    counts = [part["usage"]["completion_tokens"] for part in parts]
    assert counts == sorted(counts)
    assert counts[-1] == 120
    # Where the server lags an event carries several tokens, but not all of so many.
    assert len(set(counts)) > 2
    adding = [part["usage"]["completion_tokens"] for part in parts if _text(part)]
    assert adding
    assert adding == sorted(set(adding))
