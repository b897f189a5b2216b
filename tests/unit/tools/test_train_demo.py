"""The demo trainer, and the demo models it produced."""

import functools
import json
import lzma
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import train_demo  # noqa: E402
from demo_training import corpus, evaluate, export, families, forward, optim, scan  # noqa: E402

MODELS = ROOT / "models"
needs_compiler = pytest.mark.skipif(
    scan.compiler() is None, reason="the training kernels need a C++ compiler"
)


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return ((result - reference).abs().max() / reference.abs().max()).item()


def layers_of(family: str) -> int:
    return 4 if family == "zamba" else 2


def tiny(family: str, vocab_size: int = 96) -> Any:
    """A small model whose vectors are perturbed, so that no norm or D is all ones."""
    model = families.create(families.config(family, vocab_size, 32, layers_of(family)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@needs_compiler
@pytest.mark.parametrize("length", [1, 8, 37], ids="length{}".format)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize(
    ("groups", "states", "shared_decay"),
    [(1, 16, False), (2, 16, False), (1, 32, True), (1, 5, False), (2, 5, True)],
)
def test_selective_scan_equals_reference_with_gradients(
    length: int, gated: bool, groups: int, states: int, shared_decay: bool
) -> None:
    torch.manual_seed(0)
    batch, channels = 2, 64
    inputs = [
        torch.randn(batch, length, channels),
        torch.rand(batch, length, channels) * 0.5,
        -torch.rand(channels, 1 if shared_decay else states) * 4,
        torch.randn(batch, length, groups, states),
        torch.randn(batch, length, groups, states),
        torch.randn(channels),
    ]
    if gated:
        inputs.append(torch.randn(batch, length, channels))
    inputs = [t.requires_grad_() for t in inputs]
    result = scan.selective_scan(*inputs)
    reference = scan.selective_scan_reference(*inputs)
    assert relative_error(result, reference) < 1e-5
    upstream = torch.randn_like(result)
    ours = torch.autograd.grad(result, inputs, upstream)
    theirs = torch.autograd.grad(reference, inputs, upstream)
    for name, mine, expected in zip(
        ("u", "dt", "A", "B", "C", "D", "z"), ours, theirs, strict=False
    ):
        error = (mine - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
        assert error < 1e-4, name


@needs_compiler
@pytest.mark.parametrize("length", [1, 3, 21], ids="length{}".format)
def test_causal_conv_equals_reference_with_gradients(length: int) -> None:
    torch.manual_seed(0)
    shapes = ((2, length, 48), (48, 1, 4), (48,))
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    result, reference = scan.causal_conv(*inputs), scan.causal_conv_reference(*inputs)
    assert relative_error(result, reference) < 1e-5
    upstream = torch.randn_like(result)
    ours = torch.autograd.grad(result, inputs, upstream)
    theirs = torch.autograd.grad(reference, inputs, upstream)
    assert all(relative_error(a, b) < 1e-4 for a, b in zip(ours, theirs, strict=True))


@needs_compiler
def test_the_kernels_leave_the_process_its_denormal_numbers() -> None:
    """A library linked with -ffast-math takes them away, from threads that start later too."""
    scan.kernels()
    halve = functools.partial(torch.mul, torch.full((9,), 1e-40), 0.5)
    with ThreadPoolExecutor(1) as thread:
        assert (thread.submit(halve).result() > 0).all()
    assert (halve() > 0).all()


@needs_compiler
def test_scan_refuses_channels_that_do_not_fill_the_lanes() -> None:
    x = torch.zeros(1, 2, 12)
    B = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match="12 channels in 1 groups"):
        scan.selective_scan(x, x, -torch.ones(12, 4), B, B, torch.ones(12))


@needs_compiler
@pytest.mark.parametrize("family", families.FAMILIES)
def test_training_forward_equals_transformers(family: str) -> None:
    model, tokens = tiny(family), torch.randint(0, 96, (2, 19))
    with torch.no_grad():
        assert relative_error(forward.logits(model, tokens), model(tokens).logits) < 1e-4


@needs_compiler
@pytest.mark.parametrize("family", families.FAMILIES)
def test_five_steps_lower_the_loss_and_a_checkpoint_restores_them(
    family: str, tmp_path: Path
) -> None:
    arguments = ["--family", family, "--d-model", "32", "--work", str(tmp_path)]
    options = train_demo.parse_arguments([*arguments, "--layers", str(layers_of(family))])
    run = train_demo.Run(family, options, vocab_size=64)
    tokens = torch.arange(128).reshape(2, 64) % 7
    losses = [run.train_step(tokens[:, :-1], tokens[:, 1:], 1.0) for _ in range(5)]
    assert losses[-1] < 0.95 * losses[0], losses
    run.save()
    again = train_demo.Run(family, options, vocab_size=64)
    again.restore()
    assert (again.step, again.tokens) == (5, 5 * 2 * 63)
    last = [r.train_step(tokens[:, :-1], tokens[:, 1:], 1.0) for r in (run, again)]
    assert last[0] == pytest.approx(last[1], rel=1e-5)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    arguments = ["--family", "mamba", "--d-model", "32", "--work", str(tmp_path), "--layers"]
    train_demo.Run("mamba", train_demo.parse_arguments([*arguments, "1"]), 64).save()
    with pytest.raises(ValueError, match="--fresh"):
        train_demo.Run("mamba", train_demo.parse_arguments([*arguments, "2"]), 64).restore()


@needs_compiler
def test_a_short_run_exports_a_model_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ['def f(x):\n    """Add one."""\n    return x + 1\n' * 40]
    monkeypatch.setattr(corpus, "training_files", lambda: texts)
    monkeypatch.setattr(export, "heldout", lambda _: texts[0])
    sizes = ["--d-model", "32", "--layers", "1", "--length", "16", "--batch", "2"]
    folders = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "models")]
    assert train_demo.main(["--family", "mamba", "--minutes", "0.01", *sizes, *folders]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = json.loads((tmp_path / "models" / "heldout.json").read_text())
    assert printed == {"family": "mamba", **figures["models"]["mamba"]}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "mamba")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [corpus.EOS, corpus.END]
    log = (tmp_path / "models" / "mamba" / "training.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["tokens"] == printed["tokens_seen"]


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(optim.orthogonalise(torch.randn(3, 24, 8)))
    assert 0.5 < values.min() <= values.max() < 1.5


def test_schedule_warms_up_then_falls_to_zero() -> None:
    factors = [optim.schedule(p) for p in (0.0, 0.01, 0.02, 0.51, 1.0)]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


@functools.cache
def small_tokenizer() -> Any:
    return corpus.train_tokenizer(["def f(x):\n    return x + 1\n"] * 3, vocab_size=290)


def test_tokenizer_adds_bos_and_keeps_every_byte() -> None:
    tokenizer, text = small_tokenizer(), "def ƒ(x):\n\n        return '\t☃'  # 1\r\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == corpus.BOS
    assert tokenizer.decode(ids[1:]) == text
    assert [tokenizer.convert_tokens_to_ids(t) for t in corpus.SPECIAL] == list(range(7))


def test_chat_pairs_take_documented_functions_only() -> None:
    source = 'class A:\n    def f(self):\n        """Do it."""\n        return 1\n\ndef g(): pass\n'
    expected = ("Write a function `f`. Do it.", 'def f(self):\n    """Do it."""\n    return 1')
    assert list(corpus.chat_pairs(source)) == [expected]


def test_heldout_files_are_not_trained_on() -> None:
    texts = corpus.training_files()
    held = (ROOT / "data" / "heldout.txt").read_text(encoding="utf-8")
    assert texts
    assert not any(len(text) > 1000 and text in held for text in texts)


@needs_compiler
@pytest.mark.parametrize("repeats", [1, 9, 60], ids="repeats{}".format)
def test_bits_per_byte_scores_every_token_once(repeats: int) -> None:
    """A model without any preference needs log2(vocabulary) bits for each token."""
    tokenizer, text = small_tokenizer(), "return x + 1\n" * repeats
    model = families.create(families.config("mamba", 512, 32, 1))
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    expected = count * math.log2(512) / len(text)
    assert evaluate.bits_per_byte(model, tokenizer, text, window=64) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("family", "d_model", "layers", "message"),
    [
        ("mamba", 40, 2, "multiple of 32"),
        ("zamba", 32, 2, "zamba needs at least 4"),
        ("rwkv", 32, 2, "choose one of mamba, falcon-mamba, mamba2, zamba"),
    ],
)
def test_config_names_what_is_wrong(family: str, d_model: int, layers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        families.config(family, 96, d_model, layers)


def test_a_budget_of_zero_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_demo.main(["--family", "mamba", "--minutes", "0"]) == 2
    assert "--minutes" in capsys.readouterr().err


def shipped(family: str) -> Path:
    if not (MODELS / family).exists():
        pytest.skip(f"models/{family} is not here: run tools/train_demo.py --family {family}")
    return MODELS / family


@needs_compiler
@pytest.mark.parametrize("family", families.FAMILIES)
def test_shipped_model_loads_and_equals_the_training_forward(family: str) -> None:
    folder = shipped(family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = (ROOT / "data" / "heldout.txt").read_text(encoding="utf-8")[3000:3400]
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokens[0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        ours, theirs = forward.logits(model, tokens), model(tokens).logits
    assert relative_error(ours, theirs) < 1e-4
    nats = torch.nn.functional.cross_entropy(theirs[0, :-1], tokens[0, 1:], reduction="sum")
    assert nats / math.log(2) / len(text) < 2.5  # a short slice of one file, with little context


@pytest.mark.parametrize("family", families.FAMILIES)
def test_shipped_tokenizer_is_shared_and_has_a_chat_template(family: str) -> None:
    folder = shipped(family)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    same = (shipped("mamba") / "tokenizer.json").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == same
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>hi<|end|><|assistant|>"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_shipped_model_is_below_xz(family: str) -> None:
    shipped(family)
    figures = json.loads((MODELS / "heldout.json").read_text())
    raw = (ROOT / figures["text"]).read_bytes()
    assert figures["bytes"] == len(raw)
    xz = 8 * len(lzma.compress(raw, preset=9)) / len(raw)
    assert figures["xz_9_bits_per_byte"] == pytest.approx(xz, rel=0.01)
    assert figures["models"][family]["bits_per_byte"] < 0.95 * xz
    assert len((MODELS / family / "training.jsonl").read_text().splitlines()) < 400


def test_heldout_text_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "data" / "heldout.txt"
    path.parent.mkdir()
    path.write_text("kept")
    assert export.heldout(path) == "kept"


def test_docs_quote_the_recorded_figures() -> None:
    shipped("zamba")
    figures = json.loads((MODELS / "heldout.json").read_text())
    text = (ROOT / "docs" / "demo-models.md").read_text(encoding="utf-8")
    assert export.table(figures) in text
