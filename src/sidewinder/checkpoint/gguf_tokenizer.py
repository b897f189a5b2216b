"""The tokenizer that the metadata of a GGUF file describes, where that says it exactly.

transformers has a loader of its own, which takes GPT-2's way of splitting text for every one that
it does not know; so what is known here is built from the library below it.
"""

from pathlib import Path
from typing import Any

from sidewinder.checkpoint.gguf_header import read_header

_LIKE_LLAMA_3 = ("llama-bpe", "pixtral")
"""Nemotron's files say "pixtral": its tokenizer, of Mistral's vocabulary, was made with this one's
way of splitting."""

SPLITS = ("gpt-2", "mpt", "olmo", "falcon", *_LIKE_LLAMA_3)
"""Known values of `tokenizer.ggml.pre`: how text is cut before merges."""

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""A contraction's end; a word with what is before it; up to three digits; punctuation; spaces."""

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
"""Types of tokens. Unused ones fill the embedding up and stand for no text."""

_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""transformers' and llama.cpp's names of special tokens."""


def load_gguf_tokenizer(file: Path) -> Any:
    """transformers' tokenizer of a GGUF file.

    Raises:
        ValueError: if the file is broken, has no tokenizer, or one of another kind.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    values = read_header(file).metadata
    whole = values.get("tokenizer.huggingface.json")
    inner = _byte_level(values) if whole is None else Tokenizer.from_str(whole)
    names = {f"{name}_token": _special(values, theirs) for name, theirs in _SPECIAL.items()}
    if whole is None:
        _put_special_tokens(inner, values, names)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, chat_template=_templates(values), **names
    )


def _templates(values: dict[str, Any]) -> str | dict[str, str] | None:
    """The chat template; by name where there are several, as for conversations with functions."""
    default, names = values.get("tokenizer.chat_template"), values.get("tokenizer.chat_templates")
    if not names:
        return None if default is None else _text(default, "tokenizer.chat_template")
    keys = {name: f"tokenizer.chat_template.{name}" for name in names}
    named = {name: values.get(key) for name, key in keys.items()}
    if default is not None:
        named["default"], keys["default"] = default, "tokenizer.chat_template"
    return {name: _text(text, keys[name]) for name, text in named.items() if text is not None}


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _byte_level(values: dict[str, Any]) -> Any:
    """Byte-level BPE over the pieces that the file's kind of splitting makes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kind, split = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in SPLITS:
        raise ValueError(
            f"tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={split!r} is not read; gpt2 "
            f"is, with {', '.join(SPLITS)}"
        )
    tokens, merges = _strings(values, "tokens"), _strings(values, "merges")
    types = values.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError("tokenizer.ggml.token_type has another length than tokenizer.ggml.tokens")
    typed = list(zip(tokens, types, strict=True))
    vocab = {token: at for at, (token, kind) in enumerate(typed) if kind != _UNUSED}
    wrong = next((merge for merge in merges if merge.count(" ") != 1), None)
    if wrong is not None:
        raise ValueError(f"tokenizer.ggml.merges holds {wrong!r}, which is no pair")
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
    whole = split in _LIKE_LLAMA_3  # a piece that is a token is one, whatever merges make of it
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole))
    tokenizer.pre_tokenizer = _splitter(split)
    tokenizer.decoder = decoders.ByteLevel()
    for added, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        found = [AddedToken(token, normalized=False) for token, kind in typed if kind == added]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(found)
    return tokenizer


def _splitter(split: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if split in _LIKE_LLAMA_3:
        return pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's way
    if split != "falcon":
        return words
    # llama.cpp only comes near this: here the last two see bytes, of which some count as digits.
    return pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"),
        words,
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ])  # fmt: skip


def _strings(values: dict[str, Any], name: str) -> list[str]:
    found = values.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"tokenizer.ggml.{name} is no list of strings")
    return found


def _special(values: dict[str, Any], name: str) -> str | None:
    """The text of a special token; None where the file names none."""
    at = values.get(f"tokenizer.ggml.{name}_token_id")
    if at is None:
        return None
    tokens = _strings(values, "tokens")
    if not isinstance(at, int) or not 0 <= at < len(tokens):
        raise ValueError(
            f"tokenizer.ggml.{name}_token_id={at!r} is none of the {len(tokens)} tokens"
        )
    return tokens[at]


def _put_special_tokens(inner: Any, values: dict[str, Any], names: dict[str, str | None]) -> None:
    """BOS before a prompt and EOS behind it, where the file says so."""
    from tokenizers import processors

    put = {
        name: token
        for name in ("bos", "eos")
        if values.get(f"tokenizer.ggml.add_{name}_token") and (token := names[f"{name}_token"])
    }
    if put:
        pieces = [put.get("bos"), "$A", put.get("eos")]
        inner.post_processor = processors.TemplateProcessing(
            single=" ".join(piece for piece in pieces if piece),
            special_tokens=[(token, inner.token_to_id(token)) for token in {*put.values()}],
        )
