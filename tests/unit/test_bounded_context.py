"""Perplexity with a bounded context: every token once, with the tokens that it may see."""

import json

import pytest
import torch

from sidewinder import LLM
from sidewinder.bounded_context import score_in_context
from sidewinder.cli import main
from sidewinder.cli.main import BAD_USAGE, DONE
from sidewinder.testing import save_tiny, save_tokenizer

TEXT = [(5 * n * n + 3 * n) % 90 + 2 for n in range(61)]


@pytest.fixture(scope="module", params=["mamba", "zamba"])
def folder(request, tmp_path_factory):
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param), vocab_size=300)
    return save_tokenizer(folder, bos=True)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, dtype="float32", device="cpu", threads=1, max_batch_size=3) as llm:
        yield llm


def by_definition(llm, opening, text, context):
    """Every token by itself: the last window that begins half a context before it, or earlier."""
    stride, total = context // 2, 0.0
    for place in range(0 if opening else 1, len(text)):
        start = 0
        while place - start >= context:
            start += stride
        row = llm.logits([opening + text[start:place]])[0][-1]
        total += row.log_softmax(-1)[text[place]].item()
    return total


@pytest.mark.parametrize("opening", [[], [1]], ids=["bare", "with-bos"])
@pytest.mark.parametrize("context", [2, 7, 16, 60, 61, 62, 500])
def test_every_token_once_with_its_context(llm, opening, context):
    found = score_in_context(llm, opening + TEXT, len(opening), context)
    assert found.n_predicted == len(opening) + len(TEXT) - 1
    expected = by_definition(llm, opening, TEXT, context)
    assert found.logprob == pytest.approx(expected, rel=1e-5)


def test_a_context_beyond_the_text_is_the_whole_text(llm):
    whole = llm.perplexity([1, *TEXT])
    assert score_in_context(llm, [1, *TEXT], 1, 64).logprob == pytest.approx(whole.logprob)


def test_the_command(folder, llm, capsys, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("def f(x):\n    return x + 1\n" * 9)
    common = ["eval", str(folder), "--text", str(file), "--dtype", "float32", "--threads", "1"]
    assert main([*common, "--context", "32", "--json"]) == DONE
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    tokens = llm.encode(file.read_text())
    expected = score_in_context(llm, tokens, 1, 32)
    assert values["perplexity"] == pytest.approx(expected.perplexity)
    bits = -expected.logprob / torch.tensor(2.0).log().item() / len(file.read_bytes())
    assert values["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--context", "1"], "a context of 1 tokens predicts nothing"),
        (["--window", "64"], "nothing is compared; use --context"),
        (["--context", "64", "--rotate"], "--context is for one model alone"),
    ],
)
def test_options_that_do_not_fit(folder, capsys, monkeypatch, tmp_path, options, words):
    file = tmp_path / "text.txt"
    file.write_text("some text")
    monkeypatch.setattr(LLM, "_start", lambda _: pytest.fail("weights were loaded"))
    assert main(["eval", str(folder), "--text", str(file), *options]) == BAD_USAGE
    assert words in capsys.readouterr().err
