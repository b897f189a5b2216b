"""Parts of matrices in few bits: equal to the parts of the whole, and no more is read."""

import itertools
import random

import pytest
import torch
from quantised_cases import EVERY, FORMATS, OF_MATRICES, write_pair
from quantised_matrices import pack
from safetensors.torch import save_file

import sidewinder.checkpoint.quantised.views as views
from sidewinder.checkpoint.files import open_weights
from sidewinder.checkpoint.quantised.views import (
    Dequantised,
    PackedFloats,
    PackedIntegers,
    PerBlock,
)


class Recorded:
    """A stored tensor that counts what is read of it."""

    def __init__(self, tensor):
        self.tensor, self.read = tensor, 0

    def __getitem__(self, index):
        part = self.tensor[index]
        self.read += part.numel()
        return part


def write(folder, form, shape):
    """One matrix; the folder, and what it stands for."""
    generator = torch.Generator().manual_seed(3)
    plain, folder = folder / "plain", folder / "quantised"
    plain.mkdir()
    save_file({"a.weight": torch.randn(shape, generator=generator)}, plain / "model.safetensors")
    (plain / "config.json").write_text("{}")
    write_pair(folder, plain, form)
    return open_weights(folder)["a.weight"], open_weights(plain)["a.weight"].view[()]


MATRIX, EXPERTS = (44, 46), (3, 24, 26)


@pytest.mark.parametrize(
    ("form", "shape"),
    [(form, shape) for form in FORMATS for shape in (MATRIX, EXPERTS)]
    + [(form, (48, 46)) for form in OF_MATRICES]
    + [("nf4", (17, 9)), ("nf4 with nested scales", (17, 9)), ("int4 with zeros", (17, 9))],
)
def test_any_part_is_that_of_the_whole(tmp_path, form, shape):
    stored, whole = write(tmp_path, EVERY[form], shape)
    assert stored.shape == shape
    assert stored.dtype == torch.float32
    assert torch.equal(stored.view[()], whole)
    draw = random.Random(1)
    for _ in range(40):
        edges = [sorted(draw.sample(range(size + 1), 2)) for size in shape]
        index = tuple(slice(start, stop) for start, stop in edges)[: draw.randint(1, len(shape))]
        assert torch.equal(stored.view[index], whole[index]), index
    nothing = (slice(None),) * (len(shape) - 1) + (slice(7, 7),)
    assert stored.view[nothing].shape == whole[nothing].shape


@pytest.mark.parametrize("at_once", [1, 50, 500])
@pytest.mark.parametrize("form", ["int4 with zeros", "block fp8", "nvfp4"])
def test_experts_are_widened_a_few_rows_at_a_time(tmp_path, monkeypatch, form, at_once):
    stored, whole = write(tmp_path, EVERY[form], EXPERTS)
    monkeypatch.setattr(views, "VALUES_AT_ONCE", at_once)
    for index in ((), (slice(1, 2), slice(3, 20)), (slice(0, 2), slice(0, 24), slice(5, 21))):
        assert torch.equal(stored.view[index], whole[index])


@pytest.mark.parametrize("at_once", [1, 50, 500])
@pytest.mark.parametrize("form", ["gptq in another order", "awq", "nf4 with nested scales"])
def test_matrices_are_widened_a_few_rows_at_a_time(tmp_path, monkeypatch, form, at_once):
    stored, whole = write(tmp_path, EVERY[form], (48, 46))
    monkeypatch.setattr(views, "VALUES_AT_ONCE", at_once)
    for index in ((), (slice(3, 20),), (slice(17, 18), slice(5, 21)), (slice(0, 48), slice(9, 10))):
        assert torch.equal(stored.view[index], whole[index])


def test_only_what_a_part_touches_is_read():
    codes, scales = Recorded(torch.zeros(64, 12, dtype=torch.int32)), Recorded(torch.ones(64, 6))
    packed = PackedIntegers(codes, (64, 96), 4, 1, 8)
    matrix = Dequantised((64, 96), packed, PerBlock(scales, (1, 16)))
    assert matrix[slice(8, 24), slice(20, 50)].shape == (16, 30)
    assert codes.read == 16 * (50 // 8 + 1 - 20 // 8)
    assert scales.read == 16 * (50 // 16 + 1 - 20 // 16)


def test_words_are_as_compressed_tensors_packs_them():
    """Its `pack_to_int32` of the integers from -8 to 7, and of zeros along the rows."""
    words = torch.tensor([[0x76543210, 0xFEDCBA98 - (1 << 32)]], dtype=torch.int32)
    assert torch.equal(PackedIntegers(words, (1, 16), 4, 1, 8)[()], torch.arange(-8, 8)[None])
    assert torch.equal(pack(torch.arange(16)[None], 4), words)
    rows = PackedIntegers(words.T, (10, 1), 4, 0, 8)[()]
    assert torch.equal(rows, torch.arange(-8, 2)[:, None])


def test_bytes_are_as_compressed_tensors_packs_them():
    """Its `pack_fp4_to_uint8` of these."""
    data = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]], dtype=torch.uint8)
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    expected = torch.tensor([positive + [-value for value in positive]])
    assert torch.equal(PackedFloats(data, (1, 16))[()], expected)
    for start, stop in itertools.combinations(range(17), 2):
        part = PackedFloats(data, (1, 16))[slice(0, 1), slice(start, stop)]
        assert torch.equal(part, expected[:, start:stop])
