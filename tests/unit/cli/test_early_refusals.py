"""What commands refuse before they load, compile, measure or send anything."""

import json

import pytest

from sidewinder import LLM
from sidewinder.cli import bench_collectives, compile, main
from sidewinder.cli.main import BAD_USAGE, DONE
from sidewinder.server import run
from sidewinder.testing import save_tiny, save_tokenizer

NOWHERE = "/proc/self/nothing"
"""Where nobody can write, root included."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A model without a tokenizer."""
    return str(save_tiny("mamba", tmp_path_factory.mktemp("bare"), vocab_size=300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a tokenizer, which has no chat template."""
    made = save_tiny("mamba", tmp_path_factory.mktemp("model"), vocab_size=300)
    save_tokenizer(made)
    (made / "chat_template.jinja").unlink(missing_ok=True)
    settings = made / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({k: v for k, v in values.items() if k != "chat_template"}))
    return str(made)


@pytest.fixture
def nothing_starts(monkeypatch):
    """No weights are loaded; logging stays as it is."""
    monkeypatch.setattr(run, "start_logging", lambda *_: None)
    monkeypatch.setattr(LLM, "_start", lambda _: pytest.fail("ranks were started"))


def refused(capsys, command, *words):
    assert main(command) == BAD_USAGE
    said = capsys.readouterr().err
    for word in words:
        assert word in said


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_a_tokenizer_that_is_none(command, folder, capsys):
    prompt = ["--prompt", "a"] if command == "generate" else []
    port = ["--port", "0"] if command == "serve" else []
    given = [command, folder, "--tokenizer", NOWHERE, *prompt, *port]
    refused(capsys, given, NOWHERE, "no usable tokenizer")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["chat"]])
def test_a_model_that_has_no_tokenizer_of_its_own(command, bare, capsys):
    refused(capsys, [*command, bare], bare, "no usable tokenizer")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["chat"]])
def test_a_configuration_that_lies_is_no_fault_of_the_tokenizer(command, tmp_path, capsys):
    """transformers reads it too, for the tokenizer, and refuses some that we explain better."""
    save_tokenizer(save_tiny("bamba", tmp_path, vocab_size=300))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mamba_d_head": 5}))
    refused(capsys, [*command, str(tmp_path)], "config.json: mamba_n_heads (8) times mamba_d_head")


@pytest.mark.usefixtures("nothing_starts")
def test_a_chat_without_a_template(folder, capsys):
    refused(capsys, ["chat", folder], "chat template")


@pytest.mark.usefixtures("nothing_starts")
def test_an_empty_prompt(folder, capsys):
    refused(capsys, ["generate", folder, "--prompt", ""], "prompt is empty")


@pytest.mark.usefixtures("nothing_starts")
def test_a_shape_that_nobody_called_random(capsys):
    command = ["generate", "mamba-130m", "--prompt", "a"]
    refused(capsys, command, "mamba-130m", "--load-format random")
    refused(capsys, ["serve", "mamba-130m", "--port", "0"], "--load-format random")
    random = [*command, "--load-format", "random"]
    refused(capsys, random, "mamba-130m", "--tokenizer", "--prompt-ids")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("kind", ["latency", "throughput"])
def test_a_result_of_a_benchmark_that_cannot_be_written(kind, folder, capsys):
    refused(capsys, ["bench", kind, folder, "--output", NOWHERE], "--output", NOWHERE)


def test_a_result_of_sums_that_cannot_be_written(monkeypatch, capsys):
    monkeypatch.setattr(bench_collectives, "bench_all_reduce", lambda *_, **__: pytest.fail("ran"))
    refused(capsys, ["bench", "collectives", "--output", NOWHERE], "--output", NOWHERE)


def test_kernels_that_cannot_be_kept(monkeypatch, capsys):
    monkeypatch.setattr(compile, "check_compiler", lambda: None)
    monkeypatch.setattr(compile, "launched_by", lambda *_, **__: pytest.fail("models were run"))
    command = ["compile", "mamba-130m", "--gpu", "h100"]
    refused(capsys, [*command, "--cache", NOWHERE], f"--cache {NOWHERE}")
    monkeypatch.setenv("TRITON_CACHE_DIR", NOWHERE)
    refused(capsys, command, f"TRITON_CACHE_DIR {NOWHERE}")


@pytest.mark.parametrize("option", ["--dataset", "--output", "--plot"])
def test_files_of_a_load_come_before_its_server(option, capsys):
    command = ["bench", "serve", "--url", "http://127.0.0.1:9", option, NOWHERE]
    assert main(command) == BAD_USAGE
    said = capsys.readouterr().err
    assert NOWHERE in said
    assert "127.0.0.1" not in said


@pytest.mark.parametrize("limit", ["nan", "0", "-5"])
def test_objectives_that_no_request_meets(limit, capsys):
    command = ["bench", "serve", "--url", "http://127.0.0.1:9", f"--slo-ttft-ms={limit}"]
    assert main(command) == BAD_USAGE
    assert "ttft_s=" in capsys.readouterr().err


def test_token_ids_in_and_out_of_a_shape_without_weights(bare, capsys):
    common = ["--load-format", "random", "--max-tokens", "4", "--temperature", "0", "--ignore-eos"]
    assert main(["generate", bare, "--prompt-ids", "5,6,7", *common]) == DONE
    streamed = capsys.readouterr()
    assert "warning" not in streamed.err
    assert main(["generate", bare, "--prompt-ids", "5,6,7", *common, "--json"]) == DONE
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["prompt_tokens"] == 3
    assert streamed.out == ",".join(map(str, values["token_ids"])) + "\n"
    assert len(values["token_ids"]) == 4


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("kind", ["latency", "throughput"])
def test_speculation_on_random_prompts(kind, bare, capsys):
    refused(capsys, ["bench", kind, bare, "--speculate", "4"], "speculate=4", "bench serve")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(("value", "words"), [("16", "at most 15"), ("-1", "at least 0")])
def test_more_drafts_than_a_step_can_gain_from(value, words, bare, capsys):
    command = ["generate", bare, "--prompt-ids", "1", f"--speculate={value}"]
    refused(capsys, command, f"speculate={value}", words)
