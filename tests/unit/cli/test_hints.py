"""Options that do not exist: what is said of them, and that what is named does exist."""

import re

import pytest

from sidewinder.cli import main
from sidewinder.cli.main import BAD_USAGE, DONE
from sidewinder.elsewhere import ELSEWHERE


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["serve", "m", "--tensor-parallel-size", "2"], "--tensor-parallel-size: it is --tp here"),
        (["serve", "m", "--tensor-parallel-size=2"], "it is --tp here"),
        (["serve", "--model", "m"], "give MODEL itself"),
        (["serve", "m", "--max-batch-sizes", "2"], "did you mean --max-batch-size?"),
        (["bench", "latency", "m", "--repeat-s", "2"], "did you mean --repeats?"),
        (["generate", "m", "--prompt", "a", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["generate", "m", "--prompt", "a", "--nonsense"], "sidewinder generate --help"),
        (["bench", "latency", "m", "--zzz"], "--zzz; sidewinder bench latency --help"),
        (["serve", "m", "--prompt-ids", "1"], "--prompt-ids 1; sidewinder serve --help"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_what_was_meant(command, hint, capsys):
    assert main(command) == BAD_USAGE
    assert hint in capsys.readouterr().err


def test_hints_name_options_that_exist(capsys):
    shown = []
    for command in ("serve", "generate", "bench latency", "bench serve"):
        assert main([*command.split(), "--help"]) == DONE
        shown.append(capsys.readouterr().out)
    known = set(re.findall("--[a-z-]+", "\n".join(shown)))
    named = {name for text in ELSEWHERE.values() for name in re.findall("--[a-z-]+", text)}
    assert len(named) > 5
    assert named <= known
    assert known & set(ELSEWHERE) == {"--model"}, "only bench serve has it"


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("generate", "generate MODEL (--prompt TEXT | --prompt-file FILE | --prompt-ids N,N,...)"),
        ("run-batch", "run-batch MODEL --input FILE --output FILE"),
        ("compile", "compile MODEL --gpu NAME"),
        ("bench latency", "bench latency MODEL"),
        ("bench serve", "bench serve"),
    ],
)
def test_usage_is_one_line(command, usage, capsys):
    assert main([*command.split(), "a", "b", "--tp", "x", "--rate", "x"]) == BAD_USAGE
    shown, error = capsys.readouterr().err.splitlines()
    assert shown == f"usage: sidewinder {usage} [options]"
    assert f"sidewinder {command}: error: " in error


def test_token_ids_that_are_none(capsys):
    assert main(["generate", "m", "--prompt-ids", "1,x"]) == BAD_USAGE
    assert "'1,x' are not token ids; give numbers with commas" in capsys.readouterr().err


def test_the_bare_command_shows_its_help(capsys):
    assert main([]) == BAD_USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "examples:\n  sidewinder generate models/mamba" in shown.err
