"""One model in other files, or with its tensors under other names, is read as the same."""

import json

import pytest
import torch
from reader_cases import assert_same, load
from safetensors.torch import load_file, save_file

from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel
from sidewinder.testing import TINY, authors_layout


def split_files(folder, target, save, pattern):
    """Save `folder`'s weights in two files with an index."""
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    keys = sorted(stored)
    parts = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    names = [pattern.format(number) for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save({key: stored[key] for key in part}, target / name)
    index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    suffix = "model.safetensors" if pattern.endswith("safetensors") else "pytorch_model.bin"
    (target / f"{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    return target


@pytest.mark.parametrize("family", TINY)
def test_every_file_format_gives_the_same(family, tiny_folder, tmp_path):
    folder = tiny_folder(family)
    single_bin = tmp_path / "bin"
    single_bin.mkdir()
    (single_bin / "config.json").write_text((folder / "config.json").read_text())
    torch.save(load_file(folder / "model.safetensors"), single_bin / "pytorch_model.bin")
    sharded = split_files(folder, tmp_path / "s", save_file, "model-{}-of-2.safetensors")
    sharded_bin = split_files(folder, tmp_path / "b", torch.save, "pytorch_model-{}-of-2.bin")
    expected = load(folder, rank=1, size=3)
    for other in (single_bin, sharded, sharded_bin):
        assert_same(load(other, rank=1, size=3), expected)


def test_bin_of_the_old_format(tiny_folder, tmp_path):
    folder = tiny_folder("mamba")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    torch.save(stored, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(load(tmp_path), load(folder))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_authors_layout(family, tied, tiny_folder, tmp_path):
    folder = tiny_folder(family, tie_word_embeddings=tied)
    authors = authors_layout(folder, tmp_path, pad_vocab_size_multiple=8)
    ours, theirs = load(folder), load(authors)
    rows = len(ours["embedding.weight"])
    for name in ("embedding.weight", "lm_head.weight"):
        if name in theirs:
            assert not theirs[name][rows:].any()
            theirs[name] = theirs[name][:rows]
    assert_same(ours, theirs)


def test_zamba_block_repeated_at_every_hybrid_layer(tiny_folder, tmp_path):
    folder = tiny_folder("zamba")
    stored = load_file(folder / "model.safetensors")
    repeated = stored | {
        key.replace("layers.2.", "layers.5."): value.clone()
        for key, value in stored.items()
        if "shared_transf" in key
    }
    only_last = {
        key.replace("layers.2.", "layers.5.") if "shared_transf" in key else key: value
        for key, value in stored.items()
    }
    for number, weights in enumerate((repeated, only_last)):
        target = tmp_path / str(number)
        target.mkdir()
        (target / "config.json").write_text((folder / "config.json").read_text())
        save_file(weights, target / "model.safetensors")
        assert_same(load(target), load(folder))


@pytest.mark.parametrize("rank", [0, 1])
def test_zamba_blocks_that_differ_are_refused(tiny_folder, tmp_path, rank):
    folder = tiny_folder("zamba")
    stored = load_file(folder / "model.safetensors")
    blocks = {
        key.replace("layers.2.", "layers.5."): value + 0.5
        for key, value in stored.items()
        if "shared_transf" in key
    }
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(stored | blocks, tmp_path / "model.safetensors")
    config = load_model_config(tmp_path)
    with pytest.raises(
        ValueError, match=r"layers\.5\.shared_transf.* differs from .*share one block"
    ):
        load_shard(tmp_path, config, TensorParallel(rank, 2), torch.float32)


def test_tied_head_as_the_only_copy(tiny_folder, tmp_path):
    folder = tiny_folder("mamba")
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored.pop("backbone.embeddings.weight")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(stored, tmp_path / "model.safetensors")
    assert_same(load(tmp_path), load(folder))
