"""Conversations from Python and in the terminal, with a model that runs."""

import io

import pytest
from chat_cases import END_THINK, THINKING, TOOLS, save_talker

from sidewinder import LLM, SamplingParams
from sidewinder.chat import Conversation, Dialect, ToolChoice
from sidewinder.cli import main

ASKED = [{"role": "user", "content": "Rain?"}]
GIVEN = [tool.for_template() for tool in TOOLS]
OPENS = THINKING.replace("enable_thinking is defined", "true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_talker(tmp_path_factory.mktemp("talks"), OPENS)


def test_from_python(folder):
    """The example of docs/generation.md, with a call that must be made."""
    with LLM(folder, device="cpu", threads=1, max_batch_size=1) as llm:
        dialect = Dialect(llm.tokenizer)
        talk = Conversation(ASKED, TOOLS, ToolChoice("required", TOOLS, parallel=False))
        prompt = dialect.prompt(talk)
        asked = SamplingParams(max_tokens=300, seed=2, logit_bias={END_THINK: 4})
        params = dialect.params(talk, prompt, asked)
        tokens = llm.tokenizer.encode(prompt, special=False)
        (output,) = llm.generate([tokens], params)
        answer = dialect.reader(talk, prompt).push(output.text, last=True)
        assert answer.reasoning
        assert [call.name in ("get_weather", "now") for call in answer.calls] == [True]
        assert llm.chat(ASKED, SamplingParams(max_tokens=1), tools=GIVEN).prompt_token_ids == tokens
        shorter = llm.chat_prompt(ASKED, template_options={"enable_thinking": True})
        assert 0 < len(shorter) < len(tokens)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_in_the_terminal(folder, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr("sys.stdin", io.StringIO("Rain?\n"))
    monkeypatch.setattr("sidewinder.cli.chat._is_terminal", lambda: is_terminal)
    drawn = ["--max-tokens", "60", "--seed", "1", "--temperature", "1"]
    assert main(["chat", str(folder), "--threads", "1", *drawn]) == 0
    shown = capsys.readouterr().out
    assert ("\x1b[2m" in shown) == is_terminal
    assert "think>" not in shown
