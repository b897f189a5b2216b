"""Broken checkpoints: every error names what is wrong and what to do."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """A copy of a tiny checkpoint, to damage."""
    return shutil.copytree(tiny_folder("mamba"), tmp_path / "broken")


@pytest.fixture
def edit(broken):
    """`edit(change)`: let `change` alter the dictionary of stored tensors."""

    def apply(change):
        stored = load_file(broken / "model.safetensors")
        change(stored)
        save_file(stored, broken / "model.safetensors")

    return apply


def fails(folder, words, rank=0, size=1):
    config = load_model_config(folder)
    with pytest.raises(ValueError, match=f"(?s){words}") as error:
        load_shard(folder, config, TensorParallel(rank, size), torch.float32)
    assert str(folder) in str(error.value)


def test_missing_parameter(broken, edit):
    edit(lambda stored: stored.pop("backbone.layers.1.mixer.D"))
    fails(broken, r"lacks 1 parameters.*backbone\.layers\.1\.mixer\.D")


def test_a_missing_matrix_that_packs_two_is_named_once(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("granitemoehybrid"), tmp_path / "broken")
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.shared_mlp.input_linear.weight"]
    save_file(stored, folder / "model.safetensors")
    key = r"model\.layers\.1\.shared_mlp\.input_linear\.weight"
    fails(folder, f"lacks 1 parameters of this model: {key};")


def test_many_missing_parameters_are_counted(broken, edit):
    edit(lambda stored: [stored.pop(key) for key in list(stored) if ".layers." in key])
    fails(broken, r"lacks 30 parameters.* and 24 more")


def test_extra_parameter(broken, edit):
    edit(lambda stored: stored.update({"backbone.layers.3.mixer.D": torch.zeros(48)}))
    fails(broken, r"holds 1 parameters that this model lacks: backbone\.layers\.3\.mixer\.D")


def test_misshapen_parameter(broken, edit):
    edit(lambda stored: stored.update({"backbone.layers.0.mixer.D": torch.zeros(47)}))
    fails(broken, re.escape("layers.0.mixer.D has shape [47] instead of [48]"))


def test_integer_parameter(broken, edit):
    edit(lambda stored: stored.update({"backbone.layers.0.mixer.D": torch.zeros(48).byte()}))
    fails(broken, r"mixer\.D is stored as torch\.uint8; supported: float64, float32")


def test_second_copy_of_a_tied_head_must_agree(broken, edit):
    edit(lambda stored: stored.update({"lm_head.weight": torch.zeros(101, 24)}))
    fails(broken, r"lm_head\.weight differs from the embedding.*tie_word_embeddings", 1, 2)


def test_no_weights(broken):
    (broken / "model.safetensors").unlink()
    fails(broken, "holds no weights; expected model.safetensors or pytorch_model.bin")


@pytest.mark.parametrize("keep", [0, 6, 300, 0.5, 0.999])
def test_truncated_safetensors(broken, keep):
    file = broken / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    fails(broken, r"model\.safetensors is truncated, corrupt .*fetch it again")


def test_corrupt_safetensors_header(broken):
    file = broken / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:40] = b"\xff" * 32
    file.write_bytes(content)
    fails(broken, r"model\.safetensors is truncated, corrupt")


def to_bin(folder):
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), file)
    (folder / "model.safetensors").unlink()
    return file


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_bin(broken, keep):
    file = to_bin(broken)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    fails(broken, r"pytorch_model\.bin is truncated, corrupt .*fetch it again")


def test_damaged_bin_fails_with_a_value_error_wherever_it_is_damaged(broken):
    file = to_bin(broken)
    content, config = file.read_bytes(), load_model_config(broken)
    start, failures = content.index(b"backbone"), 0
    for offset in range(start, start + 300, 7):
        file.write_bytes(content[:offset] + b"\x00" + content[offset + 1 :])
        try:
            load_shard(broken, config, TensorParallel(), torch.float32)
        except ValueError:
            failures += 1
    assert failures > 30, "a few bytes do not matter, most do"


class Stranger:
    """Not a tensor: loading it would run code."""


def test_bin_with_other_objects(broken):
    torch.save({"a": Stranger()}, to_bin(broken))
    fails(
        broken,
        r"pytorch_model\.bin is truncated, corrupt or not a weight file \(it is not a pickle",
    )


def test_bin_that_is_no_state_dict(broken):
    torch.save({"model": {"a": torch.zeros(1)}}, to_bin(broken))
    fails(broken, r"not a plain dictionary of tensors")


def test_bin_of_integers(broken):
    torch.save({"a": torch.zeros(1, dtype=torch.int8)}, to_bin(broken))
    fails(broken, r"a is stored as torch\.int8")


def write_index(folder, weight_map):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_missing_shard(broken):
    write_index(broken, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    fails(broken, r"lacks 1 of 2 weight files that .*index\.json names: model-2\.safetensors")


def test_parameter_in_two_shards(broken):
    write_index(broken, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    shutil.copy(broken / "model-1.safetensors", broken / "model-2.safetensors")
    fails(broken, r"model-2\.safetensors holds backbone\..*model-1\.safetensors holds too")


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}']
)
def test_broken_index(broken, text):
    write_index(broken, {})
    (broken / "model.safetensors.index.json").write_text(text)
    fails(broken, "is not a checkpoint index|names no weight files")


def test_too_many_ranks(broken):
    config = load_model_config(broken)
    with pytest.raises(ValueError, match=r"tp=49 does not fit.*valid tp: 1 to 48"):
        load_shard(broken, config, TensorParallel(0, 49), torch.float32)
