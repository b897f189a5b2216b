"""`sidewinder bench serve` against the shared server, and its arithmetic."""

import asyncio
import itertools
import json
import statistics
import xml.etree.ElementTree as ElementTree

import pytest

from sidewinder.bench.event_client import BrokenConnection, EventClient
from sidewinder.bench.serve import Objectives, distribution, summary
from sidewinder.bench.serve_client import Answer
from sidewinder.bench.serve_load import ServeLoad, arrivals, read_conversations, synthetic
from sidewinder.cli import main

SMALL = ["--requests", "6", "--prompt-tokens", "20", "--output-tokens", "5", "--vocab-size", "280"]


def bench(server, capsys, *options):
    status = main(["bench", "serve", "--url", server.url, *options, "--json"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_two_passes_with_rate_and_plot(server, capsys, tmp_path):
    picture, raw = tmp_path / "plot.svg", tmp_path / "raw.json"
    options = [*SMALL, "--prefix-tokens", "12", "--rate", "200", "--passes", "2"]
    status, result = bench(
        server,
        capsys,
        *options,
        "--plot",
        str(picture),
        "--output",
        str(raw),
        "--slo-ttft-ms",
        "1e5",
    )
    assert status == 0
    assert json.loads(raw.read_text())["passes"] == result["passes"]
    for each in result["passes"]:
        assert each["failed"] == 0
        assert each["prompt_tokens"] == 120
        assert each["output_tokens"] == 30
        assert each["goodput_requests_per_s"] == pytest.approx(each["requests_per_s"])
        assert 0 < each["ttft_s"]["p50"] <= each["e2e_s"]["p50"]
        assert each["output_tokens_per_s"] == pytest.approx(30 / each["duration_s"])
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_concurrency_is_a_limit_and_objectives_count(server, capsys):
    status, result = bench(server, capsys, *SMALL, "--concurrency", "2", "--slo-e2e-ms", "0.001")
    assert status == 0
    (each,) = result["passes"]
    assert each["peak_concurrency"] <= 2
    assert each["goodput_requests_per_s"] == 0


def test_a_dataset_gives_prompts_and_lengths(server, capsys, tmp_path):
    file = tmp_path / "chats.json"
    turns = [{"from": "human", "value": "the def"}, {"from": "gpt", "value": "abc"}]
    file.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}]))
    options = ["--requests", "3", "--output-tokens", "2", "--dataset", str(file)]
    status, result = bench(server, capsys, *options)
    assert status == 0
    assert result["passes"][0]["output_tokens"] == 6


def test_failures_are_reported(server, capsys):
    status, result = bench(server, capsys, *SMALL, "--vocab-size", "100000")
    assert status == 1
    (each,) = result["passes"]
    assert each["failed"] == 6
    assert "vocabulary" in each["errors"][0]
    assert main(["bench", "serve", "--url", "http://127.0.0.1:9"]) == 2
    assert main(["bench", "serve", "--url", server.url, "--model", "other"]) == 2


def test_the_key_is_not_in_the_result(server, capsys, monkeypatch):
    for key in (["--api-key", "secret"], ["--api-key=secret"], ["--api-k", "secret"]):
        options = ["--url", server.url + "/v1", *SMALL, *key, "--json"]
        monkeypatch.setattr("sys.argv", ["sidewinder", "bench", "serve", *options])
        assert main(["bench", "serve", *options]) == 0
        told = capsys.readouterr().out
        assert "--api-k" in told
        assert "secret" not in told


def test_a_plot_is_svg(server, capsys, tmp_path):
    command = ["bench", "serve", "--url", server.url, "--plot", str(tmp_path / "plot.png")]
    assert main(command) == 2
    assert "end the name in .svg" in capsys.readouterr().err


def test_shared_beginnings_and_seeds():
    load = ServeLoad(requests=6, prompt_tokens=20, prefix_tokens=15, prefixes=2)
    prompts = [ask.prompt for ask in synthetic(load)]
    assert len({tuple(prompt[:15]) for prompt in prompts}) == 2
    assert len({tuple(prompt) for prompt in prompts}) == 6
    assert prompts == [ask.prompt for ask in synthetic(load)]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 16.0])
def test_arrivals_have_their_rate_and_burstiness(burstiness):
    times = arrivals(ServeLoad(requests=4000, rate=50.0, burstiness=burstiness))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.15)
    # A gamma distribution's coefficient of variation is 1 / sqrt(shape).
    variation = statistics.stdev(gaps) / statistics.mean(gaps)
    assert variation == pytest.approx(burstiness**-0.5, rel=0.15)


def test_figures_by_hand():
    assert distribution([]) is None
    found = distribution([float(value) for value in range(1, 101)])
    assert (found["p50"], found["p99"], found["max"], found["mean"]) == (50, 99, 100, 50.5)
    good = Answer(0.0, 0.0, 0.5, [0.1, 0.2], 1.0, 10, 4, 3)
    late = Answer(1.0, 0.0, 0.9, [0.1, 0.2], 1.0, 10, 0, 3)
    lost = Answer(1.5, error="gone", e2e_s=0.5)
    figures = summary([good, late, lost], Objectives(ttft_s=0.6))
    assert figures["duration_s"] == 2
    assert figures["requests_per_s"] == 1
    assert figures["goodput_requests_per_s"] == 0.5
    assert figures["cached_tokens"] == 4
    assert figures["tpot_s"]["mean"] == pytest.approx((0.25 + 0.05) / 2)
    assert figures["peak_concurrency"] == 2
    assert figures["failed"] == 1


@pytest.mark.parametrize(
    "values",
    [
        {"requests": 0},
        {"rate": 0.0},
        {"burstiness": -1.0},
        {"concurrency": 0},
        {"prefix_tokens": 256},
        {"vocab_size": 5},
    ],
    ids=str,
)
def test_loads_out_of_range(values):
    (name,) = values
    with pytest.raises(ValueError, match=name):
        ServeLoad(**values)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", "[]", '[{"conversations": [{}, {}]}]'])
def test_datasets_that_are_none(tmp_path, text):
    file = tmp_path / "data.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"data\.json"):
        read_conversations(file)


def test_what_servers_do_to_connections():
    """A client that reads events itself meets whatever servers send."""
    answers = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n6\r\ndata: \r\n",
        b"5\r\nb\n\n:c\r\n2\r\n\n\n\r\n0\r\n\r\n",
        b"HTTP/1.1 429 No\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndata: x\n\n",
        b"nonsense\r\n\r\n",
    ]

    async def run():
        seen, found = [], []

        async def serve(reader, writer):
            while await reader.readuntil(b"{}"):
                seen.append(writer.get_extra_info("peername"))
                first, parts = not found, [answers.pop(0)]
                if first:
                    parts.append(answers.pop(0))
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.02)
                if not first:
                    writer.close()
                    return

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = EventClient(f"http://127.0.0.1:{port}", {"X-One": "1"})
        for _ in range(4):
            found.append(await ask(client))
        client.close()
        server.close()
        with pytest.raises(OSError, match=str(port)):
            await ask(client)
        return seen, found

    async def ask(client):
        events = []
        try:
            status, rest = await client.post("/x", b"{}", lambda data, _: events.append(data))
        except BrokenConnection as error:
            return events, str(error)
        return events, status, rest

    seen, found = asyncio.run(run())
    assert found[0] == ([b"a", b"b"], 200, b"")
    assert found[1] == ([], 429, b"busy")
    assert found[2] == ([b"x"], "the server closed the connection")
    assert found[3][0] == []
    assert "not HTTP" in found[3][1]
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
