"""Writing what training produces: checkpoints in transformers' format, logs and figures."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from .corpus import BOS, END, EOS, PAD, heldout_text, train_tokenizer
from .evaluate import xz_bits_per_byte


def default_work() -> Path:
    """Where resumable checkpoints go: the user's cache, never the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sidewinder" / "train"


def shared_tokenizer(work: Path, texts: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of all families: trained once, then read from ``work``."""
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(texts).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def save_model(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Round the weights to bf16 in place and save model, tokenizer and generation defaults."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    generation: Any = GenerationConfig  # transformers leaves it untyped
    model.generation_config = generation(
        bos_token_id=BOS,
        eos_token_id=[EOS, END],
        pad_token_id=PAD,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer, chat template included, without traces of where it was trained."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text())
    for local in ("backend", "is_local", "local_files_only"):
        settings.pop(local, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n")


def save_log(log: list[dict[str, float]], path: Path) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in log))


def heldout(path: Path) -> str:
    """The held-out text, written first from the running interpreter's library if missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(heldout_text(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def record(path: Path, family: str, entry: dict[str, float], text: str) -> None:
    """Enter one model's figures in ``heldout.json``, beside those of the other families."""
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"models": {}}
    figures["text"] = "data/heldout.txt"
    figures["bytes"] = len(text.encode())
    figures["xz_9_bits_per_byte"] = round(xz_bits_per_byte(text), 4)
    figures["models"][family] = entry
    path.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def table(figures: dict[str, Any]) -> str:
    """The figures of ``heldout.json`` as the Markdown table of docs/demo-models.md."""
    head = "family | parameters | tokens seen | minutes | held-out bits per byte"
    lines = [f"| {head} |", "|---|--:|--:|--:|--:|"]
    for family, entry in figures["models"].items():
        size, seen = entry["parameters"] / 1e6, entry["tokens_seen"] / 1e6
        bits, minutes = entry["bits_per_byte"], entry["minutes"]
        lines.append(f"| {family} | {size:.2f} M | {seen:.1f} M | {minutes:.0f} | {bits:.2f} |")
    lines.append(f"| `xz -9` | | | | {figures['xz_9_bits_per_byte']:.2f} |")
    return "\n".join(lines)
