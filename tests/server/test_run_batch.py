"""`sidewinder run-batch`: files of requests, without a server."""

import json

import pytest
from chat_cases import TOOLS

from sidewinder import LLM, SamplingParams
from sidewinder.cli import main
from sidewinder.server.batch import answered, read_batch

TEXT = {"prompt": "def f", "max_tokens": 6, "seed": 3, "temperature": 1.5, "ignore_eos": True}


@pytest.fixture
def model(talker):
    return str(talker)


def line(custom_id, body, url="/v1/completions", **fields):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body} | fields)


@pytest.fixture
def batch(tmp_path, model):
    """Runs requests; returns the exit status and the answers by their name."""
    given, told = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def run(*lines, options=()):
        given.write_text("\n".join(lines) + "\n", encoding="utf-8")
        engine = ["--device", "cpu", "--threads", "1", "--max-batch-size", "3"]
        status = main(["run-batch", model, "-i", str(given), "-o", str(told), *engine, *options])
        answers = [json.loads(each) for each in told.read_text(encoding="utf-8").splitlines()]
        assert len({answer["custom_id"] for answer in answers}) == len(answers)
        return status, {answer["custom_id"]: answer for answer in answers}

    run.output = told
    return run


def test_every_endpoint(batch, model, capsys):
    messages = [{"role": "user", "content": "Rain?"}]
    tools = [tool.for_template() for tool in TOOLS]
    texts = [line(f"text {i}", TEXT | {"seed": i}) for i in range(20)]
    status, answers = batch(
        *texts,
        line("ü", {"messages": messages, "tools": tools, "tool_choice": "required",
                   "parallel_tool_calls": False, "seed": 1}, "/v1/chat/completions"),
        line("response", {"input": "Rain?", "max_output_tokens": 3, "model": model},
             "/v1/responses"),
        "",
        line("many", TEXT | {"prompt": ["a", "b"], "n": 5}),
        options=["--json"],
    )  # fmt: skip
    assert status == 0
    assert len(answers) == 23
    for answer in answers.values():
        assert answer["error"] is None
        assert answer["id"] == f"batch_req_{answer['response']['request_id']}"
        assert answer["response"]["status_code"] == 200
    bodies = {name: answer["response"]["body"] for name, answer in answers.items()}
    assert bodies["ü"]["choices"][0]["message"]["tool_calls"]
    assert bodies["response"]["object"] == "response"
    assert len(bodies["many"]["choices"]) == 10
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["requests"] == 23
    assert figures["refused"] == 0
    assert figures["output_tokens"] >= 20 * 6 + 60
    with LLM(model, device="cpu", threads=1) as llm:
        params = SamplingParams(max_tokens=6, seed=4, temperature=1.5, ignore_eos=True)
        assert bodies["text 4"]["choices"][0]["text"] == llm.generate("def f", params)[0].text


def test_requests_that_are_refused_have_answers(batch, capsys):
    status, answers = batch(
        line("good", TEXT), line("bad", TEXT | {"top_p": 2}), line("other", TEXT | {"model": "x"})
    )
    assert status == 1
    codes = {name: answer["response"]["status_code"] for name, answer in answers.items()}
    assert codes == {"good": 200, "bad": 400, "other": 404}
    assert "top_p=2" in answers["bad"]["response"]["body"]["error"]["message"]
    assert "3 requests, 2 of them refused" in capsys.readouterr().err


def test_what_was_answered_is_kept(batch, capsys):
    assert batch(line("1", TEXT))[0] == 0
    before = batch.output.read_text()
    status, _ = batch(line("1", TEXT), line("2", TEXT))
    assert status == 2
    assert "--resume" in capsys.readouterr().err
    assert batch.output.read_text() == before
    batch.output.write_text(before + '{"id": "batch_req_9", "custom')  # killed while it wrote
    status, answers = batch(line("1", TEXT), line("2", TEXT), options=["--resume", "--json"])
    assert status == 0
    assert set(answers) == {"1", "2"}
    assert batch.output.read_text().startswith(before)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["requests"], figures["answered_before"]) == (2, 1)
    status, answers = batch(line("1", TEXT), line("2", TEXT), options=["--resume"])
    assert status == 0
    assert set(answers) == {"1", "2"}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no requests"),
        (["{"], "line 1 is no JSON"),
        (["[]"], "line 1 is no JSON object"),
        ([line("1", TEXT), line("1", TEXT)], "line 2: custom_id '1' is there twice"),
        ([line("", TEXT)], "custom_id"),
        ([line(3, TEXT)], "custom_id"),
        ([line("a\ud83d", TEXT)], "not valid Unicode"),
        ([line("1", TEXT, "/v1/embeddings")], "/v1/chat/completions"),
        ([line("1", TEXT, method="GET")], "POST"),
        ([line("1", "text")], "body"),
        ([line("1", TEXT | {"stream": True})], "stream"),
    ],
    ids=str,
)
def test_files_that_are_refused(tmp_path, lines, words):
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=words):
        read_batch(file)
    assert main(["run-batch", "no model", "-i", str(file), "-o", str(tmp_path / "out")]) == 2


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        read_batch(tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_batch(tmp_path / "latin")
    (tmp_path / "other").write_text("{}\n")
    with pytest.raises(ValueError, match="no answer"):
        answered(tmp_path / "other")
    assert answered(tmp_path / "none") == set()


@pytest.mark.parametrize(
    "text",
    ["notes", '{"custom_id": "1"}', '{"id": "batch_req_1", "custom_id": "1"}', '{"id": "other'],
)
def test_resuming_leaves_other_files_as_they_are(tmp_path, text):
    answer = '{"id": "batch_req_1", "custom_id": "1", "response": {}}\n'
    for before in ("", answer):
        for end in ("", "\n"):
            file = tmp_path / "precious"
            file.write_text(before + text + end)
            with pytest.raises(ValueError, match=rf"line {1 + bool(before)} is no answer"):
                answered(file)
            assert file.read_text() == before + text + end


@pytest.mark.parametrize("n_bytes", [1, 15, 30])
def test_what_a_killed_run_left_is_cut(tmp_path, n_bytes):
    file = tmp_path / "out.jsonl"
    answer = '{"id": "batch_req_1", "custom_id": "1", "response": {"é": 1}}'
    file.write_text(f"{answer}\n{answer[:n_bytes]}")
    assert answered(file) == {"1"}
    assert file.read_text() == answer + "\n"
    file.write_text(answer)
    assert answered(file) == {"1"}
    assert file.read_text() == answer + "\n", "only the end of its line was missing"


def test_input_and_output_are_two_files(tmp_path, capsys):
    file = tmp_path / "in.jsonl"
    file.write_text(line("1", TEXT))
    for options in ([], ["--resume"]):
        command = ["run-batch", "no model", "-i", str(file), "-o", str(file), *options]
        assert main(command) == 2
        assert "is the file of requests" in capsys.readouterr().err
    assert file.read_text() == line("1", TEXT)


def test_nothing_is_loaded_for_nothing(tmp_path):
    given, told = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_bytes(b"\xef\xbb\xbf" + line("1", TEXT).encode())
    told.write_text('{"id": "batch_req_1", "custom_id": "1", "response": {}}\n')
    assert main(["run-batch", "no model", "-i", str(given), "-o", str(told), "--resume"]) == 0


def test_a_body_that_no_client_could_send_is_refused_alone(batch):
    status, answers = batch(
        line("good", TEXT),
        line("half a character", TEXT | {"prompt": "a\ud83d"}),
        line("no number", TEXT | {"temperature": float("nan")}),
    )
    assert status == 1
    codes = {name: answer["response"]["status_code"] for name, answer in answers.items()}
    assert codes == {"good": 200, "half a character": 400, "no number": 400}
