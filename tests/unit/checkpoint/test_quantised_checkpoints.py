"""Quantised checkpoints against the same ones with what their matrices stand for."""

import json
import shutil

import pytest
import torch
from parity_harness import Checkpoint, assert_parity, oracle_logits, random_tokens, run_sharded
from quantised_cases import EVERY, FORMATS, OF_MATRICES, write_pair
from reader_cases import assert_same, load
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sidewinder import LLM
from sidewinder.cli import main
from sidewinder.cli.main import DONE
from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.sizes import loading_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*is made for activations")

FAMILIES = ("mamba2", "granitemoehybrid", "granite_experts", "nemotron_experts")
OTHERS = ("mamba", "falcon_mamba", "zamba", "zamba2", "bamba", "falcon_h1", "jamba_experts")


@pytest.fixture
def pair(tiny_folder, tmp_path):
    """`pair(family, form)`: folders of the quantised checkpoint and of the plain one."""

    def make(family, form):
        plain = shutil.copytree(tiny_folder(family), tmp_path / "plain")
        return write_pair(tmp_path / "quantised", plain, EVERY[form]), plain

    return make


def check(folder, plain, sizes=(1, 2, 3), dtypes=(torch.float32,)):
    for size in sizes:
        for rank in range(size):
            for dtype in dtypes:
                assert_same(load(plain, rank, size, dtype), load(folder, rank, size, dtype))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_of_the_families_that_are_published_so(pair, family, form):
    check(*pair(family, form), dtypes=(torch.float32, torch.bfloat16))


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("form", ["fp8 channel", "int4 with zeros", "block fp8"])
def test_every_other_family(pair, family, form):
    check(*pair(family, form), sizes=(1, 3))


@pytest.mark.parametrize("form", OF_MATRICES)
@pytest.mark.parametrize("family", ["mamba", "mamba2", "granitemoehybrid", "nemotron_experts"])
def test_formats_of_matrices_alone(pair, family, form):
    check(*pair(family, form), dtypes=(torch.float32, torch.bfloat16))


@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("mamba2", "int8 channel"),
        ("granite_experts", "fp8 channel"),
        ("granitemoehybrid", "int4 groups"),
        ("nemotron_experts", "modelopt fp8"),
        ("nemotron_h", "modelopt nvfp4"),
        ("falcon_h1", "gptq"),
        ("mamba", "awq"),
        ("granitemoehybrid", "nf4 with nested scales"),
    ],
)
def test_logits_are_those_of_the_dequantised_model(pair, family, form, tp):
    """transformers' with the plain weights; ours with these are the same to the last bit."""
    folder, plain = pair(family, form)
    config = load_model_config(folder)
    sequences = random_tokens(config.vocab_size, [23, 1, 9])
    oracle = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    logits = oracle_logits(oracle, sequences)
    results = [
        run_sharded(Checkpoint(each, config, sequences, logits), tp, [1, 7, 20])
        for each in (folder, plain)
    ]
    for reference, result, of_plain in zip(logits, *results, strict=True):
        assert_parity("logits", reference, result)
        assert torch.equal(result, of_plain)


@pytest.mark.parametrize("weight_dtype", ["auto", "int8", "int4"])
def test_weights_are_rounded_again_as_any_others(pair, weight_dtype):
    def logits(folder):
        options = {"device": "cpu", "dtype": "float32", "weight_dtype": weight_dtype}
        with LLM(folder, **options) as llm:
            return llm.logits([[3, 1, 4, 1, 5], [9, 2]])

    for one, other in zip(*map(logits, pair("granitemoehybrid", "fp8 channel")), strict=True):
        assert torch.equal(one, other)


def test_the_plan_counts_the_dtype_of_the_run(pair, capsys):
    reports = []
    for folder in pair("granite_experts", "int4 groups"):
        assert main(["plan", str(folder), "--tp", "2", "--dtype", "bfloat16", "--json"]) == DONE
        reports.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert reports[0] == reports[1]
    loaded = load(folder, 1, 2, torch.bfloat16)
    size = sum(tensor.nbytes for tensor in loaded.values())
    assert reports[0]["ranks"][1]["weight_bytes"] == size
    config = load_model_config(folder)
    assert loading_bytes(config, TensorParallel(1, 2), torch.bfloat16, "auto") >= size


def test_the_dtype_is_that_of_what_is_not_quantised(pair):
    """Where `config.json` does not say it."""
    folder, _ = pair("mamba2", "int8 channel")
    file = folder / "config.json"
    values = json.loads(file.read_text())
    del values["dtype"]
    file.write_text(json.dumps(values))
    assert load_model_config(folder).dtype == "float32"
    stored = load_file(folder / "model.safetensors")
    half = {name: part.half() for name, part in stored.items() if part.is_floating_point()}
    save_file(stored | half, folder / "model.safetensors")
    assert load_model_config(folder).dtype == "float16"


def test_files_by_torch(pair):
    folder, plain = pair("mamba2", "int4 with zeros")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    check(folder, plain, sizes=(1, 3))
