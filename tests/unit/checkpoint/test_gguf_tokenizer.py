"""Tokenizers read from GGUF files, against the ones whose vocabulary and merges they hold."""

import gguf
import pytest
from gguf_cases import add_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Inner
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sidewinder.checkpoint.gguf_tokenizer import load_gguf_tokenizer
from sidewinder.testing import save_tokenizer
from sidewinder.tokenizer import Tokenizer

SAMPLE = (
    "def f(x):\n    return x  # it's 3.14, 1234567 and\t ...'ll go\r\n\n   élan — «ça»!? 你好 🙂\n"
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"

LLAMA_3 = [  # as in the models' own tokenizer.json
    pre_tokenizers.Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
]

SPLITTERS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "mpt": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "olmo": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "falcon": [  # as in the models' own tokenizer.json
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ],
    "llama-bpe": LLAMA_3,
    "pixtral": LLAMA_3,
}


def trained(pre, bos=False):
    """A tokenizer with merges within and across what the ways of splitting keep apart."""
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    texts = [SAMPLE, *(SAMPLE[at:] for at in range(0, 60, 7)), "12 123 1234 12345 --- ... !!! 's"]
    inner.train_from_iterator(texts, trainer)
    inner.pre_tokenizer = pre_tokenizers.Sequence(SPLITTERS[pre])
    inner.model.ignore_merges = SPLITTERS[pre] is LLAMA_3
    inner.add_tokens(
        [AddedToken("    ", normalized=False), AddedToken("<think>", normalized=False)]
    )
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )  # fmt: skip


def write(path, change):
    writer = gguf.GGUFWriter(path, "mamba")
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By kind of splitting: the tokenizer, and what is read of it."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for pre in SPLITTERS:
        oracle = trained(pre)
        file = write(folder / f"{pre}.gguf", lambda w, o=oracle, p=pre: add_tokenizer(w, o, p))
        made[pre] = oracle, load_gguf_tokenizer(file)
    return made


@pytest.mark.parametrize("pre", SPLITTERS)
def test_any_text(pairs, pre):
    oracle, tokenizer = pairs[pre]

    @settings(max_examples=300, deadline=None)
    @given(st.text() | st.text("a's .!$<=19 \n\té你<think>|pad", max_size=40))
    def check(text):
        ids = tokenizer.encode(text)
        assert ids == oracle.encode(text)
        assert tokenizer.decode(ids) == oracle.decode(ids)

    check()
    assert tokenizer.encode(SAMPLE) == oracle.encode(SAMPLE)
    assert len(tokenizer.encode(SAMPLE)) < len(SAMPLE.encode())


def test_the_ways_of_splitting_differ_on_the_sample(pairs):
    made = [pairs[pre][1].encode(SAMPLE) for pre in ("gpt-2", "falcon", "pixtral")]
    assert made[0] != made[1] != made[2] != made[0]


def test_a_piece_that_is_a_token_needs_no_merges(tmp_path):
    """In Llama 3's and Mistral's vocabularies some tokens are out of the merges' reach."""

    def change(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("pixtral")
        writer.add_token_list(["a", "b", "c", "ab", "bc", "abc"])
        writer.add_token_merges(["b c", "a b"])

    tokenizer = load_gguf_tokenizer(write(tmp_path / "m.gguf", change))
    assert tokenizer.encode("abc") == [5]
    assert tokenizer.encode("abcc") == [0, 4, 2]


def test_special_tokens(pairs):
    oracle, tokenizer = pairs["gpt-2"]
    assert (tokenizer.bos_token, tokenizer.eos_token_id, tokenizer.pad_token) == (
        "<|end|>", 0, "<|pad|>",
    )  # fmt: skip
    assert tokenizer.all_special_ids == oracle.all_special_ids
    ids = tokenizer.encode("<|end|>a<think>    b")
    assert ids == oracle.encode("<|end|>a<think>    b")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>    b"


@pytest.mark.parametrize("bos", [True, False])
def test_bos_and_chat_template(tmp_path, bos):
    oracle = trained("mpt", bos)
    file = write(tmp_path / "m.gguf", lambda w: add_tokenizer(w, oracle, "mpt", bos=bos))
    tokenizer = Tokenizer(str(file))
    assert tokenizer.encode("hello") == oracle.encode("hello")
    assert (tokenizer.encode("hello")[0] == 0) is bos
    assert tokenizer.encode("hello", special=False) == oracle.encode(
        "hello", add_special_tokens=False
    )
    messages = [{"role": "user", "content": "Hi"}]
    expected = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(tokenizer.chat(messages)) == expected == "user: Hi\nassistant:"


def test_a_template_for_functions(tmp_path):
    oracle = trained("mpt")
    oracle.chat_template = [
        {"name": "default", "template": TEMPLATE},
        {"name": "tool_use", "template": "functions"},
    ]
    tokenizer = Tokenizer(
        str(write(tmp_path / "m.gguf", lambda w: add_tokenizer(w, oracle, "mpt")))
    )
    assert tokenizer.chat_template() == TEMPLATE
    assert tokenizer.chat_template(with_tools=True) == "functions"


def test_unused_tokens_stand_for_no_text(tmp_path):
    oracle = trained("gpt-2")
    size = len(oracle) + 3
    file = write(tmp_path / "m.gguf", lambda w: add_tokenizer(w, oracle, "gpt-2", size))
    tokenizer = load_gguf_tokenizer(file)
    name = f"[PAD{size - 1}]"
    assert tokenizer.encode(name) == oracle.encode(name)
    assert tokenizer.decode([5, size - 1, 6]) == oracle.decode([5, 6])


def test_a_whole_tokenizer_json_comes_first(tmp_path):
    oracle = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path, bos=True))

    def change(writer):
        add_tokenizer(writer, oracle, "a way that nobody knows")
        writer.add_string("tokenizer.huggingface.json", oracle.backend_tokenizer.to_str())

    (tmp_path / "sub").mkdir()
    tokenizer = load_gguf_tokenizer(write(tmp_path / "sub" / "m.gguf", change))
    assert tokenizer.encode(SAMPLE) == oracle.encode(SAMPLE)
    assert tokenizer.chat_template == oracle.chat_template


def test_tokenizer_files_beside_the_model_come_first(tmp_path):
    write(tmp_path / "m.gguf", lambda writer: writer.add_tokenizer_model("llama"))
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model='llama'"):
        Tokenizer(str(tmp_path)).load()
    save_tokenizer(tmp_path)
    assert Tokenizer(str(tmp_path)).encode("the")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.add_tokenizer_model("llama"), "model='llama' with .*pre=None is not read; gp"),
        (lambda w: add_tokenizer(w, trained("mpt"), "tekken"), "pre='tekken' is not read.*falcon"),
        (lambda w: add_tokenizer(w, trained("mpt"), "falcon-h1"), "pre='falcon-h1' is not read"),
        (lambda w: w.add_context_length(1), "model=None"),
        (lambda w: (w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("mpt")), "tokens is no"),
        (lambda w: (add_tokenizer(w, trained("mpt"), "mpt"),
                    w.kv_data[0]["tokenizer.ggml.merges"].value.append("ab")), "'ab', which is no"),
        (lambda w: (add_tokenizer(w, trained("mpt"), "mpt"),
                    w.kv_data[0]["tokenizer.ggml.token_type"].value.pop()), "another length"),
        (lambda w: (add_tokenizer(w, trained("mpt"), "mpt"),
                    w.add_uint32("tokenizer.ggml.unknown_token_id", 900)), "900 is none of the"),
        (lambda w: (add_tokenizer(w, trained("mpt"), "mpt"),
                    w.kv_data[0].pop("tokenizer.chat_template", None),
                    w.add_uint32("tokenizer.chat_template", 3)), "chat_template is no text"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_do(tmp_path, change, words):
    file = write(tmp_path / "m.gguf", change)
    with pytest.raises(ValueError, match=words) as error:
        Tokenizer(str(file)).load()
    assert "pass tokenizer=<folder or hub id>, or use token ids" in str(error.value)
    assert str(file) in str(error.value)
