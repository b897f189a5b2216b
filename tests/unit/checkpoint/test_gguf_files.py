"""GGUF files: what is read of them, and what is wrong with the ones that are refused."""

import re
import struct
import sys
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch
from gguf_cases import TYPES, fails, gguf_tensors, load, made, write_gguf
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
from sidewinder.testing import tiny_oracle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_gguf(tiny_oracle("mamba"), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


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


@pytest.mark.parametrize("family", ["mamba", "jamba_experts", "nemotron_experts", "falcon_h1"])
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


@pytest.mark.parametrize("others", [(1, 0), (1 << 63, 0), ((1 << 64) - 1, 0)])
def test_a_tensor_without_values(tiny, tmp_path, others):
    content = tiny.read_bytes()
    name = b"blk.2.ssm_x.weight"
    at = content.index(name) + len(name) + 4
    file = tmp_path / "bad.gguf"
    file.write_bytes(content[:at] + struct.pack("<QQ", *others) + content[at + 16 :])
    fails(file, rf"blk\.2\.ssm_x\.weight has shape \[0, {others[0]}\], without a value; .* fetch")


def test_without_the_package(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    fails(tiny, r"needs the package gguf: pip install gguf$")


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
