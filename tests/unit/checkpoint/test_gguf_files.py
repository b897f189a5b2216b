"""GGUF files: what is read of them, and what is wrong with the ones that are refused."""

import re
import struct
import sys
from contextlib import suppress
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf_cases import TYPES, gguf_tensors, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from sidewinder.checkpoint import reader
from sidewinder.checkpoint.files import open_weights
from sidewinder.checkpoint.gguf_files import find_gguf, open_gguf
from sidewinder.checkpoint.gguf_header import read_header
from sidewinder.checkpoint.hub import resolve_model
from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import EngineConfig, engine_config, load_model_config
from sidewinder.parallel.group import TensorParallel
from sidewinder.sensitivity import sensitivity_file
from sidewinder.state.cache.fingerprint import fingerprint
from sidewinder.testing import save_tiny, tiny_oracle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_gguf(tiny_oracle("mamba"), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def load(path, rank=0, size=1):
    return load_shard(
        path, load_model_config(path), TensorParallel(rank, size), torch.float32
    )  # fmt: skip


def fails(path, words):
    with pytest.raises(ValueError, match=f"(?s){words}") as error:
        load(path)
    assert str(path) in str(error.value)


def made(tmp_path, family="mamba", **options):
    return write_gguf(tiny_oracle(family), tmp_path / "made.gguf", **options)


def test_the_header_is_what_the_package_reads(tiny):
    ours, theirs = read_header(tiny), gguf.GGUFReader(tiny)
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == fields
    assert [(info.name, info.shape, info.kind, info.start) for info in ours.tensors] == [
        (each.name, tuple(each.shape[::-1]), each.tensor_type, each.data_offset)
        for each in theirs.tensors
    ]


@pytest.mark.parametrize("kind", gguf.GGML_QUANT_SIZES, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random scales are infinite, too
def test_any_slice_of_every_type(tmp_path, kind):
    """Of random blocks: the slice of a tensor is the slice of all of it."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 3, 3 * block
    packed = np.random.default_rng(0).integers(0, 256, (rows, 3 * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "mamba")
    shape = gguf.quant_shape_from_byte_shape(packed.shape, kind)
    writer.add_tensor("one", packed, raw_shape=packed.shape, raw_dtype=kind)
    assert tuple(shape) == (rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        whole = gguf.quants.dequantize(packed, kind)
    except NotImplementedError:
        if kind.name != "F64":
            with pytest.raises(ValueError, match=r"one\.gguf: one is of type .* cannot widen"):
                open_gguf(tmp_path / "one.gguf")
            return
        whole = packed.view(np.float64)
    stored = open_gguf(tmp_path / "one.gguf")["one"]
    assert stored.shape == (rows, columns)
    for index in (
        (slice(None),), (slice(1, 3),), (slice(0, 0),), (slice(None), slice(2, columns - 1)),
        (slice(1, 2), slice(block, 2 * block)), (slice(None), slice(1, 1)),
    ):  # fmt: skip
        part = stored.view[index].float().numpy()
        np.testing.assert_array_equal(part, whole.astype(np.float32)[index])


def test_only_the_blocks_of_a_slice_are_widened(tmp_path, monkeypatch):
    oracle = tiny_oracle("mamba", hidden_size=64)
    file = write_gguf(oracle, tmp_path / "q.gguf", TYPES.Q8_0)
    config, stored, widened = load_model_config(file), open_gguf(file), []
    real = gguf.quants.dequantize
    monkeypatch.setattr(
        gguf.quants, "dequantize", lambda data, kind: widened.append(data.shape) or real(data, kind)
    )
    stored["blk.0.ssm_out.weight"].view[slice(None), slice(40, 64)]
    stored["token_embd.weight"].view[(slice(7, 9),)]
    assert widened == [(64, 34), (2, 2 * 34)]
    widened.clear()
    load_shard(file, config, TensorParallel(1, 4), torch.float32)
    # Two columns of blocks at most are cut: the rest of a matrix is some other rank's.
    assert sum(np.prod(shape) for shape in widened) < 0.3 * file.stat().st_size


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_matrix_is_widened_in_parts(tmp_path, monkeypatch, family):
    wide = {"mamba": {}, "mamba2": {"num_heads": 8, "head_dim": 16}}[family]
    file = write_gguf(tiny_oracle(family, hidden_size=64, **wide), tmp_path / "q.gguf", TYPES.Q8_0)
    whole, widened = load(file, 1, 3), []
    real = gguf.quants.dequantize
    monkeypatch.setattr(reader, "VALUES_AT_ONCE", 5 * 64)
    monkeypatch.setattr(
        gguf.quants, "dequantize", lambda data, kind: widened.append(data.shape) or real(data, kind)
    )
    parts = load(file, 1, 3)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    by_column = {64, 13}  # rows of out_proj and x_proj
    by_row = [rows for rows, n_bytes in widened if n_bytes == 2 * 34 and rows not in by_column]
    assert max(by_row) == 5
    assert len(by_row) > 20


def test_missing_tensor(tmp_path):
    file = made(tmp_path, rename=lambda name: None if name == "blk.1.ssm_d" else name)
    fails(file, r"lacks 1 parameters of this model: blk\.1\.ssm_d;.*GGUF metadata")


def test_unknown_tensor(tmp_path):
    file = made(tmp_path, change=lambda w: w.add_tensor("blk.0.more", np.zeros(3, np.float32)))
    fails(file, r"holds 1 parameters that this model lacks: blk\.0\.more;")


@pytest.mark.parametrize("key", ["ssm.state_size", "ssm.inner_size", "ssm.conv_kernel"])
def test_misshapen_tensor(tmp_path, key):
    file = made(tmp_path, change=lambda w: override(w, f"mamba.{key}", 6))
    fails(file, r"blk\.0\.ssm_\w+(\.weight)? has shape \[.*\] instead of \[.*GGUF metadata")


def override(writer, key, value):
    writer.kv_data[0][key].value = value


def remove(key):
    return lambda writer: writer.kv_data[0].pop(key)


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("mamba", lambda w: override(w, "general.architecture", "llama"),
         "general.architecture='llama' is not supported; supported: mamba, mamba2, jamba, gran"),
        ("mamba", remove("general.architecture"), "general.architecture=None|is missing"),
        ("mamba", remove("mamba.ssm.inner_size"), "mamba.ssm.inner_size is missing"),
        ("mamba2", remove("mamba2.ssm.group_count"), "mamba2.ssm.group_count is missing"),
        ("mamba", lambda w: override(w, "mamba.block_count", 5000), "block_count=5000 is too lar"),
        ("mamba", lambda w: override(w, "mamba.embedding_length", 25),
         r"token_embd.weight has shape \[101, 24\] instead of \[tokens, 25\]"),
        ("mamba", lambda w: w.add_vocab_size(102), "mamba.vocab_size=102, and token_embd.weight"),
        ("mamba2", lambda w: override(w, "mamba2.ssm.time_step_rank", 7),
         r"time_step_rank=7 does not divide mamba2.ssm.inner_size \(48\)"),
        ("mamba2", lambda w: override(w, "mamba2.ssm.group_count", 3),
         r"group_count=3 does not divide mamba2.ssm.time_step_rank \(8\)"),
        ("mamba", lambda w: override(w, "mamba.attention.layer_norm_rms_epsilon", 0.0),
         "layer_norm_rms_epsilon=0.0 is not a positive number"),
        ("mamba", lambda w: override(w, "mamba.ssm.conv_kernel", 1),
         "conv_kernel=1 is not an integer of at least 2"),
        ("jamba", remove("jamba.attention.head_count_kv"), "head_count_kv is no list of 5 numbers"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count_kv", [0, 4, 0, 0]), "no list"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count_kv", [4] * 5), "every layer"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count_kv", [0, 4, 0, 0, 2]),
         r"head_count_kv=\[0, 4, 0, 0, 2\] must be one number wherever it is not 0"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count_kv", [0, 3, 0, 0, 3]),
         r"head_count_kv=3 does not divide head_count \(8\)"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count", 7),
         r"head_count=7 does not divide jamba.embedding_length \(40\)"),
        ("granitemoehybrid", lambda w: override(w, "granitehybrid.rope.scaling.finetuned", True),
         r"rope.scaling.finetuned is not false: rotary positions \(Bamba's\) are not supported"),
        ("granitemoehybrid", remove("granitehybrid.rope.scaling.finetuned"), "rotary positions"),
        ("granitemoehybrid", lambda w: override(w, "granitehybrid.logit_scale", -1.0),
         "logit_scale=-1.0 is not a number of at least 0"),
        ("jamba_experts", lambda w: override(w, "jamba.expert_used_count", 6),
         "expert_used_count=6 is above expert_count=5"),
        ("jamba_experts", lambda w: override(w, "jamba.expert_count", 4),
         r"ffn_gate_inp.weight has shape \[5, 40\] instead of \[4, 40\]"),
    ],
)  # fmt: skip
def test_metadata_that_does_not_fit(tmp_path, family, change, words):
    fails(made(tmp_path, family, change=change), words)


FAMILIES = [
    "mamba", "falcon_mamba", "mamba2", "jamba", "jamba_experts", "granitemoehybrid",
    "granite_experts",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_is_the_folders(tmp_path, family):
    """But for the layout, and numbers that the file has in float32."""
    expected = load_model_config(save_tiny(family, tmp_path / "folder"))

    def change(writer):
        writer.add_bos_token_id(expected.bos_token_id)
        writer.add_eos_token_id(*expected.eos_token_ids)

    read = load_model_config(made(tmp_path, family, change=change))
    assert read.norm_eps == pytest.approx(expected.norm_eps, rel=1e-7)
    inner = read.norm_eps if expected.family == "jamba" else expected.mixer_norm_eps
    attention = expected.attention
    if attention is not None:
        assert read.attention.scale == pytest.approx(attention.scale, rel=1e-7)
        attention = replace(attention, scale=read.attention.scale)
    assert read == replace(
        expected, layout="gguf", norm_eps=read.norm_eps, mixer_norm_eps=inner, attention=attention
    )


def test_tokens_that_end_a_text(tmp_path):
    def change(writer):
        writer.add_eos_token_id(7)
        writer.add_eot_token_id(9)
        writer.add_uint32("tokenizer.ggml.eom_token_id", 7)

    config = load_model_config(made(tmp_path, change=change))
    assert (config.bos_token_id, config.eos_token_ids) == (None, (7, 9))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16"),
     ("Q4_0", "bfloat16")],
)  # fmt: skip
def test_dtype_of_most_weights(tmp_path, kind, dtype):
    file = write_gguf(tiny_oracle("mamba", hidden_size=64), tmp_path / "m.gguf", TYPES[kind])
    assert load_model_config(file).dtype == dtype


def test_a_vocabulary_alone_is_no_model(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "mamba")
    writer.add_embedding_length(24)
    writer.add_ssm_inner_size(48)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fails(tmp_path / "vocab.gguf", "no token_embd.weight; a vocabulary alone is no model")


def test_a_that_is_not_negative(tmp_path):
    oracle = tiny_oracle("mamba")
    oracle.backbone.layers[1].mixer.A_log.data[2, 3] = torch.nan
    file = write_gguf(oracle, tmp_path / "nan.gguf")
    fails(file, r"blk\.1\.ssm_a holds values above zero or none at all \(NaN\).*converter")


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 100, 500, 0.3, 0.9, 0.9999])
def test_truncated_file(tiny, tmp_path, keep):
    content = tiny.read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    fails(file, "is truncated.* corrupt.*fetch it again")


@pytest.mark.parametrize(
    ("at", "new", "words"),
    [
        (0, b"GGML", "does not begin with GGUF"),
        (4, struct.pack("<I", 1), "GGUF version 1; versions 2 and 3 are read"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 1 << 60), "corrupt"),
        (16, struct.pack("<Q", 1 << 60), "corrupt"),
        (24, struct.pack("<Q", 1 << 62), r"ends before \d+ bytes"),
    ],
)
def test_corrupt_header(tiny, tmp_path, at, new, words):
    content = bytearray(tiny.read_bytes())
    content[at : at + len(new)] = new
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    fails(file, words)


def test_a_tensor_that_is_there_twice(tiny, tmp_path):
    content = tiny.read_bytes()
    file = tmp_path / "bad.gguf"
    for new in (b"blk.0.ssm_a", b"blk.2.ssm_a"):
        file.write_bytes(content.replace(b"blk.1.ssm_a", new))
        fails(file, rf"{file} holds {new.decode()} twice")


def test_a_key_that_is_there_twice(tiny, tmp_path):
    content = tiny.read_bytes()
    (tmp_path / "bad.gguf").write_bytes(
        content.replace(b"mamba.ssm.state_size", b"mamba.ssm.inner_size")
    )
    fails(tmp_path / "bad.gguf", r"corrupt .*mamba\.ssm\.inner_size is there twice")


def test_a_count_without_end_is_not_followed(tmp_path):
    """An array that says it has 2**60 elements."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    file = tmp_path / "bad.gguf"
    for kind in (0, 8, 12):
        file.write_bytes(head + struct.pack("<IIQ", 9, kind, 1 << 60) + bytes(100))
        fails(file, r"ends before \d+ bytes")


@pytest.mark.parametrize("family", ["mamba", "jamba_experts"])
def test_any_byte_may_be_wrong(tmp_path, family):
    whole = made(tmp_path, family)
    content, end = whole.read_bytes(), min(info.start for info in read_header(whole).tensors)
    file = tmp_path / "bad.gguf"

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), min_size=1, max_size=4)
    )
    def check(changes):
        broken = bytearray(content)
        for at, value in changes:
            broken[at] = value
        file.write_bytes(broken)
        with suppress(ValueError):  # and nothing else
            load(file)

    check()


@pytest.mark.parametrize("kind", [99, 15])
def test_unknown_type(tiny, tmp_path, kind):
    content = tiny.read_bytes()
    name = b"blk.2.ssm_x.weight"
    at = content.index(name) + len(name) + 4 + 16
    file = tmp_path / "bad.gguf"
    file.write_bytes(content[:at] + struct.pack("<I", kind) + content[at + 4 :])
    fails(file, rf"blk\.2\.ssm_x\.weight is of type {kind}, which .* cannot widen.*convert")


def test_rows_that_are_no_blocks(tiny, tmp_path):
    content = tiny.read_bytes()
    name = b"blk.2.ssm_x.weight"
    at = content.index(name) + len(name) + 4 + 16
    file = tmp_path / "bad.gguf"
    file.write_bytes(content[:at] + struct.pack("<I", TYPES.Q4_0) + content[at + 4 :])
    fails(file, "ssm_x.weight has rows of 48 values, and Q4_0 packs 32 at a time")


def test_without_the_package(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    fails(tiny, r"needs the package gguf: pip install gguf, or install sidewinder\[gguf\]")


def test_what_a_folder_holds(tiny, tmp_path):
    assert find_gguf(tmp_path) is None
    (tmp_path / "a.gguf").write_bytes(tiny.read_bytes())
    assert find_gguf(tmp_path) == tmp_path / "a.gguf" == find_gguf(tmp_path / "a.gguf")
    assert resolve_model(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    assert load(tmp_path).keys() == load(tiny).keys()
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 2 GGUF models \(a.gguf, b.gguf\); give one of"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_gguf(tmp_path) is None


def test_no_such_file(tmp_path):
    for path in (tmp_path / "no.gguf", "no/such/model.gguf", "no.gguf"):
        with pytest.raises(ValueError, match=re.escape(f"{path} does not exist; give a .gguf")):
            resolve_model(path)


def test_a_part_that_is_missing(tmp_path):
    made(tmp_path, split_max_tensors=9)
    first, second, *_ = sorted(tmp_path.glob("*.gguf"))
    second.unlink()
    for path in (first, tmp_path):
        with pytest.raises(ValueError, match=rf"lacks 1 of the \d files of made: {second.name}"):
            load(path)


def test_checksums_cover_the_file(tmp_path):
    def of(path):
        return fingerprint(engine_config(model=str(path), dtype="float32"), load_model_config(path))

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    file = write_gguf(tiny_oracle("mamba"), tmp_path / "a" / "m.gguf")
    other = write_gguf(tiny_oracle("mamba", seed=1), tmp_path / "b" / "m.gguf")
    assert of(file) == of(file.parent) != of(other)
    for seed, path in ((0, tmp_path / "a" / "m.gguf"), (2, tmp_path / "b" / "m.gguf")):
        path.unlink()
        write_gguf(tiny_oracle("mamba", seed), path, split_max_tensors=20)
    parts = of(tmp_path / "a")
    last = sorted((tmp_path / "a").glob("*.gguf"))[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert of(tmp_path / "a") != parts != of(tmp_path / "b")


def test_costs_of_sums_are_beside_the_file(tiny):
    file = sensitivity_file(EngineConfig(str(tiny), tp=2, dtype="float32"))
    assert file == tiny.with_name("tiny-all-reduce-tp2-float32.json")


def test_every_tensor_is_there(tiny):
    named = {name for _, name, _ in gguf_tensors(tiny_oracle("mamba"))}
    assert open_weights(tiny).keys() == named
