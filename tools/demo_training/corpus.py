"""Training text (the Python standard library), the tokenizer, and token streams."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD, BOS, EOS, END = 0, 1, 2, 6

# Files that are only measured on, never trained on (committed as data/heldout.txt).
HELDOUT = (
    "bisect.py",
    "calendar.py",
    "contextlib.py",
    "csv.py",
    "fractions.py",
    "heapq.py",
    "json/encoder.py",
    "netrc.py",
    "queue.py",
    "sched.py",
    "shlex.py",
    "tempfile.py",
    "textwrap.py",
)
# Tests repeat themselves, and the rest are tables or generated: not worth a small model's capacity.
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "idle_test", "__pycache__"}
SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "ensurepip", "lib-dynload"}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def heldout_text() -> str:
    """The held-out files of the running interpreter, one after the other."""
    return "\n".join((_stdlib() / name).read_text(encoding="utf-8") for name in HELDOUT)


def training_files() -> list[str]:
    """Texts of the standard library's modules, without the held-out ones, in a fixed order."""
    root, texts = _stdlib(), []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.as_posix() in HELDOUT or SKIPPED_FOLDERS & set(relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            texts.append(text)
    return texts


def chat_pairs(text: str, longest: int = 1200) -> Iterator[tuple[str, str]]:
    """(request, answer) for every short documented function of a module: docstring to source."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("__"):
            continue
        about = (ast.get_docstring(node) or "").strip().split("\n")[0]
        indent, body = " " * node.col_offset, lines[node.lineno - 1 : node.end_lineno]
        source = "\n".join(line.removeprefix(indent) for line in body)
        if about and len(source) < longest:
            yield f"Write a function `{node.name}`. {about}", source


def train_tokenizer(texts: list[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts BOS before every text (pairs are not supported)."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"\n+ *|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair=None, special_tokens=[("<|bos|>", BOS)]
    )
    wrap: Any = PreTrainedTokenizerFast  # transformers leaves it untyped
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(SPECIAL[3:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )
    return wrapped


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return encoded


def token_streams(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    """(modules, chats), each one long ``[tokens]`` stream of BOS ... EOS documents."""
    files = [[BOS, *ids, EOS] for ids in _encode(tokenizer, texts)]
    chats = []
    pairs = [pair for text in texts for pair in chat_pairs(text)]
    asked = _encode(tokenizer, [request for request, _ in pairs])
    told = _encode(tokenizer, [answer for _, answer in pairs])
    user, assistant = SPECIAL.index("<|user|>"), SPECIAL.index("<|assistant|>")
    for request, answer in zip(asked, told, strict=True):
        chats.append([BOS, user, *request, END, assistant, *answer, END, EOS])
    return _join(files), _join(chats)


def _join(documents: list[list[int]]) -> Tensor:
    return torch.tensor([token for ids in documents for token in ids], dtype=torch.long)


def sample_batch(
    streams: tuple[Tensor, Tensor], batch: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random windows: inputs and next-token targets, both ``[batch, length]``.

    Every window begins with BOS, as every prompt will. One window in sixteen is chat.
    """
    rows = []
    for _ in range(batch):
        chat = int(torch.randint(16, (1,), generator=generator)) == 0
        stream = streams[1] if chat and len(streams[1]) > length else streams[0]
        start = int(torch.randint(len(stream) - length, (1,), generator=generator))
        rows.append(stream[start : start + length + 1])
    windows = torch.stack(rows)
    inputs, targets = windows[:, :-1].clone(), windows[:, 1:]
    inputs[:, 0] = BOS
    return inputs, targets
