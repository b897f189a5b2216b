"""A tiny tokenizer."""

from collections.abc import Sequence
from pathlib import Path

CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def save_tokenizer(
    folder: Path,
    merges: int = 30,
    bos: bool = False,
    special: Sequence[str] = (),
    template: str = CHAT_TEMPLATE,
) -> Path:
    """Write a tiny byte-level BPE tokenizer into `folder` and return it.

    Its ids: 0 is `<|end|>` (end of text, and BOS where `bos`), then further `special` tokens, 256
    bytes, then up to `merges` merges: 287 at most by default.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257 + len(special) + merges,
        special_tokens=["<|end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["def the return in self ing er on at the, the self."] * 4, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, eos_token="<|end|>", bos_token="<|end|>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    return folder
