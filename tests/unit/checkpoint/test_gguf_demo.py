"""The models that ship here, written as GGUF files with their tokenizers, as users run them."""

import json
from pathlib import Path

import pytest
import torch
from gguf_cases import TYPES, add_tokenizer, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidewinder import LLM, SamplingParams
from sidewinder.cli import main

MODELS = Path(__file__).parents[3] / "models"
PROMPTS = ["def read_lines(path):", "class Parser:\n    def __init__(self, 12345", " "]
PARAMS = SamplingParams(max_tokens=24, temperature=0)


def convert(name, folder, whole=True):
    """The model in bfloat16, as it is stored; `whole`: with its tokenizer.json inside."""
    oracle = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)

    def change(writer):
        add_tokenizer(writer, tokenizer, "gpt-2", bos=True)
        if whole:
            text = tokenizer.backend_tokenizer.to_str()
            writer.add_string("tokenizer.huggingface.json", text)

    return write_gguf(oracle, folder / f"{name}.gguf", TYPES.BF16, change)


def texts(model, tp, prompts):
    with LLM(str(model), tp=tp, threads=1) as llm:
        outputs = llm.generate(prompts, PARAMS)
        chat = llm.chat([{"role": "user", "content": "Hello"}], PARAMS)
    return [(output.token_ids, output.text) for output in (*outputs, chat)]


@pytest.mark.parametrize(("name", "tp"), [("mamba", 1), ("mamba2", 2), ("falcon-mamba", 1)])
def test_the_same_text(tmp_path, name, tp):
    assert texts(convert(name, tmp_path), tp, PROMPTS) == texts(MODELS / name, tp, PROMPTS)


def test_the_same_text_by_tokens_and_merges(tmp_path):
    """A prompt that GPT-2's splitting and the model's own cut alike: no line ends, no numbers."""
    file = convert("mamba", tmp_path, whole=False)
    assert texts(file, 1, PROMPTS[:1]) == texts(MODELS / "mamba", 1, PROMPTS[:1])


def test_commands_take_the_file_and_its_folder(tmp_path, capsys):
    file = convert("mamba", tmp_path)
    text = tmp_path / "text.txt"
    text.write_text(PROMPTS[0] * 5)
    for command in (["plan", "--tp", "2"], ["eval", "--text", str(text)]):
        shown = []
        for model in (MODELS / "mamba", file, tmp_path):
            assert main([command[0], str(model), *command[1:], "--json"]) == 0
            values = json.loads(capsys.readouterr().out.splitlines()[-1])
            shown.append({key: value for key, value in values.items() if key not in UNEQUAL})
        assert shown[0] == shown[1] == shown[2], command


UNEQUAL = {"model", "seconds", "machine", "command", "tokens_per_s", "engine"}


@pytest.mark.filterwarnings("ignore:outputs have token ids and no text")
def test_without_a_tokenizer_token_ids_still_work(tmp_path, capsys):
    oracle = AutoModelForCausalLM.from_pretrained(MODELS / "mamba", dtype=torch.float32)
    file = write_gguf(oracle, tmp_path / "bare.gguf", TYPES.BF16)
    assert main(["generate", str(file), "--prompt", "a"]) != 0
    assert "no usable tokenizer in" in (shown := capsys.readouterr().err)
    assert "pass" in shown
    ids = []
    for model in (file, MODELS / "mamba"):
        with LLM(str(model), threads=1) as llm:
            assert llm.runner_report.dtype == "bfloat16"
            ids.append(llm.generate([1, 50, 60], PARAMS)[0].token_ids)
    assert ids[0] == ids[1]
