"""The command line: what it prints, where, and its exit statuses."""

import json
import warnings
from pathlib import Path

import pytest

from sidewinder.cli import main
from sidewinder.cli.main import BAD_USAGE, DONE, FAILED, INTERRUPTED, build_parser
from sidewinder.parallel.errors import RankFailure
from sidewinder.testing import save_tiny, save_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = save_tiny("mamba", tmp_path_factory.mktemp("model"), vocab_size=300)
    return str(save_tokenizer(folder))


def last_json(text: str) -> dict[str, object]:
    return dict(json.loads(text.splitlines()[-1]))


def test_generate_streams_text_and_reports_figures(model, capsys):
    options = ["--max-tokens", "5", "--temperature", "0", "--ignore-eos"]
    assert main(["generate", model, "--prompt", "import os", *options]) == DONE
    streamed = capsys.readouterr()
    assert "5 tokens" in streamed.err
    assert "TTFT" in streamed.err
    assert main(["generate", model, "--prompt", "import os", *options, "--json"]) == DONE
    values = last_json(capsys.readouterr().out)
    assert streamed.out == str(values["text"]) + "\n"
    assert values["output_tokens"] == 5
    assert values["finish_reason"] == "length"


def test_generate_reads_the_prompt_from_a_file(model, capsys, tmp_path: Path):
    file = tmp_path / "prompt.txt"
    file.write_text("héllo", encoding="utf-8")
    common = ["--max-tokens", "3", "--seed", "7", "--ignore-eos", "--json"]
    assert main(["generate", model, "--prompt-file", str(file), *common]) == DONE
    from_file = last_json(capsys.readouterr().out)
    assert main(["generate", model, "--prompt", "héllo", *common]) == DONE
    from_option = last_json(capsys.readouterr().out)
    assert from_file["token_ids"] == from_option["token_ids"]


def test_stop_string_ends_the_text(model, capsys):
    greedy = ["--max-tokens", "8", "--temperature", "0", "--ignore-eos", "--json"]
    assert main(["generate", model, "--prompt", "a", *greedy]) == DONE
    text = str(last_json(capsys.readouterr().out)["text"])
    stop = text[len(text) // 2 :]
    assert main(["generate", model, "--prompt", "a", *greedy, "--stop", stop]) == DONE
    values = last_json(capsys.readouterr().out)
    assert values["finish_reason"] == "stop"
    assert values["text"] == text[: text.index(stop)]


def test_eval_gives_the_same_figures_in_small_chunks(model, capsys, tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("def f(x):\n    return x + 1\n" * 5)
    assert main(["eval", model, "--text", str(file), "--json"]) == DONE
    whole = last_json(capsys.readouterr().out)
    small = ["eval", model, "--text", str(file), "--max-step-tokens", "7", "--json"]
    assert main(small) == DONE
    chunked = last_json(capsys.readouterr().out)
    assert whole["bytes"] == len(file.read_bytes())
    assert chunked["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-4)
    assert chunked["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-4)


def test_eval_can_stop_early(model, capsys, tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("abcdefgh" * 20)
    assert main(["eval", model, "--text", str(file), "--max-tokens", "10", "--json"]) == DONE
    assert last_json(capsys.readouterr().out)["tokens"] == 10


def test_chat_answers_until_an_empty_line(model, capsys, monkeypatch):
    answers = iter(["hello", "/reset", "again", ""])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(answers))
    assert main(["chat", model, "--max-tokens", "4", "--ignore-eos", "--seed", "1"]) == DONE
    assert capsys.readouterr().err.count("[4 tokens,") == 2


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_plan_reports_every_rank(model, capsys, tp):
    assert main(["plan", model, "--tp", str(tp)]) == DONE
    assert "in_proj.weight" in capsys.readouterr().out
    assert main(["plan", model, "--tp", str(tp), "--json"]) == DONE
    report = last_json(capsys.readouterr().out)
    assert len(report["ranks"]) == tp
    assert bool(report["collectives"]) == (tp > 1)


def test_plan_counts_rounded_weights(model, capsys):
    sizes = {}
    for weight_dtype in ("auto", "int8", "int4"):
        assert main(["plan", model, "--json", "--weight-dtype", weight_dtype]) == DONE
        report = last_json(capsys.readouterr().out)
        assert report["weight_dtype"] == weight_dtype
        rank = report["ranks"][0]
        sizes[weight_dtype] = rank["weight_bytes"], rank["decode_weight_bytes"]
        heads = [row for row in report["parameters"] if row["name"] == "lm_head.weight"]
        assert bool(heads) == (weight_dtype != "auto")
    assert sizes["int4"][0] < sizes["int8"][0]
    assert sizes["int4"][1] < sizes["int8"][1] < sizes["auto"][1]
    assert main(["plan", model, "--weight-dtype", "int4"]) == DONE
    assert "(large ones int4)" in capsys.readouterr().out


def test_generate_in_int4(model, capsys):
    load = ["--prompt", "ab", "--max-tokens", "3", "--ignore-eos", "--json"]
    assert main(["generate", model, *load, "--weight-dtype", "int4"]) == DONE
    assert len(last_json(capsys.readouterr().out)["token_ids"]) == 3


def test_bench_latency_prints_and_writes_its_result(model, capsys, tmp_path: Path):
    file = tmp_path / "results" / "latency.json"
    load = ["--prompt-tokens", "9", "--output-tokens", "4", "--repeats", "2", "--no-ceilings"]
    assert main(["bench", "latency", model, *load, "--json", "--output", str(file)]) == DONE
    printed = last_json(capsys.readouterr().out)
    assert printed == json.loads(file.read_text())
    assert printed["repeats"] == 2
    assert printed["ttft_s"]["min"] <= printed["ttft_s"]["median"] <= printed["ttft_s"]["max"]


def test_bench_latency_says_what_weights_are_rounded_to(model, capsys):
    load = ["--prompt-tokens", "5", "--output-tokens", "3", "--repeats", "1", "--no-ceilings"]
    assert main(["bench", "latency", model, *load, "--weight-dtype", "int4"]) == DONE
    assert "float32, weights in int4; batch 1" in capsys.readouterr().out
    assert main(["bench", "latency", model, *load]) == DONE
    assert "weights in" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["generate"],
        ["generate", "MODEL"],
        ["generate", "MODEL", "--prompt", "a", "--no-such-option"],
        ["generate", "MODEL", "--prompt", "a", "--tp", "many"],
        ["fly"],
    ],
)
def test_bad_usage_is_status_2(argv, capsys):
    assert main(argv) == BAD_USAGE
    assert "usage: sidewinder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--tp", "0"], "tp=0"),
        (["--tp", "1000"], "valid tp"),
        (["--dtype", "int3"], "int3"),
        (["--device", "abacus"], "abacus"),
        (["--temperature", "-1"], "temperature"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--all-reduce", "morse"], "morse"),
    ],
)
def test_bad_input_is_status_2_and_one_line(model, extra, message, capsys):
    assert main(["generate", model, "--prompt", "a", *extra]) == BAD_USAGE
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_warnings_are_one_line_too(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main sets it
    assert main(["plan", "nothing/nowhere/none"]) == BAD_USAGE
    shown = warnings.formatwarning("few slots", UserWarning, "llm.py", 7)
    assert shown == "sidewinder: warning: few slots\n"


def test_missing_model_and_missing_files_are_status_2(model, capsys, tmp_path: Path):
    assert main(["plan", str(tmp_path / "nothing")]) == BAD_USAGE
    assert main(["eval", model, "--text", str(tmp_path / "nothing.txt")]) == BAD_USAGE
    assert "nothing.txt" in capsys.readouterr().err
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert main(["eval", model, "--text", str(binary)]) == BAD_USAGE
    assert main(["plan", model, "--tp", "0"]) == BAD_USAGE
    assert main(["plan", model, "--weight-dtype", "int3"]) == BAD_USAGE
    assert "'int3' is unknown; use auto or int8 or int4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [(RankFailure("rank 1 of 2 died"), FAILED), (KeyboardInterrupt(), INTERRUPTED)],
)
def test_failures_have_their_own_status(model, error, status, monkeypatch, capsys):
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("sidewinder.cli.generate.LLM", fail)
    assert main(["generate", model, "--prompt", "a"]) == status
    assert "sidewinder: " in capsys.readouterr().err


def test_help_of_every_command_works(capsys):
    for command in ("generate", "chat", "eval", "bench", "plan"):
        assert main([command, "--help"]) == DONE
        assert f"sidewinder {command}" in capsys.readouterr().out
    assert "examples:" in build_parser().format_help()


def test_bench_collectives_doubles_the_size(capsys):
    sizes = ["--min-bytes", "64", "--max-bytes", "300", "--calls", "20"]
    assert main(["bench", "collectives", *sizes, "--json"]) == DONE
    rows = last_json(capsys.readouterr().out)["rows"]
    assert [row["bytes"] for row in rows] == [64, 128, 256]
    assert all(0 < row["median_us"] <= row["max_us"] for row in rows)


@pytest.mark.parametrize("extra", [["--tp", "1"], ["--calls", "0"], ["--min-bytes", "0"]])
def test_bench_collectives_refuses_nonsense(extra, capsys):
    assert main(["bench", "collectives", *extra]) == BAD_USAGE
    assert extra[0] in capsys.readouterr().err
