"""Parts on disk: any ranks write, any ranks read; nothing damaged is believed."""

import pytest
import torch

from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.dims import LocalDims
from sidewinder.sharding.slicing import shard
from sidewinder.state.cache.formats import encode
from sidewinder.state.cache.layout import state_rules
from sidewinder.state.cache.parts import FAILURES, Place, read_part, write_part
from sidewinder.state.pool import StateSnapshot
from sidewinder.state.spec import StateSpec
from sidewinder.testing import TINY, tiny_config

KEY = "0123456789abcdef0123456789abcdef"


def whole_state(config, dtype="auto"):
    """A state of the whole model, five tokens of keys and values included."""
    spec = StateSpec.of(config, LocalDims.of(config, TensorParallel(0, 1)))
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    conv, ssm = random(spec.n_layers, *spec.conv), random(spec.n_layers, *spec.ssm)
    tensors = encode(StateSnapshot(conv, ssm), dtype)
    if spec.n_invocations:
        tensors |= {name: random(spec.n_invocations, 5, *spec.kv) for name in "kv"}
    return tensors


def own_part(tensors, config, tp):
    rules = state_rules(config, tp.size)
    return {name: shard(rules[name], tensor, tp) for name, tensor in tensors.items()}


def write(place, tensors, config, size):
    for rank in range(size):
        tp = TensorParallel(rank, size)
        part = own_part(tensors, config, tp)
        write_part(place, KEY, part, state_rules(config, size), tp)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [*((family, {}) for family in TINY), ("bamba", {"attn_layer_indices": [0, 3]})],
    ids=[*TINY, "bamba, attention first"],
)
@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_other_ranks_read_what_some_wrote(family, overrides, dtype, tmp_path):
    config = tiny_config(family, **overrides)
    tensors = whole_state(config, dtype)
    for writers in (1, 2, 3, 4):
        place = Place(tmp_path / str(writers), "same")
        place.folder.mkdir()
        write(place, tensors, config, writers)
        for readers in (1, 2, 3, 4):
            for rank in range(readers):
                tp = TensorParallel(rank, readers)
                found = read_part(place, KEY, state_rules(config, readers), tp)
                expected = own_part(tensors, config, tp)
                assert found.keys() == expected.keys()
                for name, tensor in expected.items():
                    assert torch.equal(found[name], tensor), (writers, readers, rank, name)


@pytest.fixture
def written(tmp_path):
    config = tiny_config("mamba2")
    place = Place(tmp_path, "same")
    write(place, whole_state(config), config, 2)

    def read(place=place):
        return read_part(place, KEY, state_rules(config, 1), TensorParallel(0, 1))

    return place, read


def test_every_damaged_byte_is_found(written):
    place, read = written
    read()
    file = place.folder / f"{KEY}.1-of-2.safetensors"
    good = file.read_bytes()
    for position in (len(good) - 1, len(good) // 2, 40, 9, 0):
        file.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(FAILURES):
            read()
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(FAILURES):
        read()
    file.write_bytes(good)
    read()


def test_missing_parts_and_strangers(written):
    place, read = written
    with pytest.raises(ValueError, match="another model"):
        read(Place(place.folder, "other"))
    (place.folder / f"{KEY}.0-of-2.safetensors").unlink()
    with pytest.raises(ValueError, match="missing"):
        read()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    config = tiny_config("mamba")
    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space"):
        write(Place(tmp_path, "same"), whole_state(config), config, 1)
    assert list(tmp_path.iterdir()) == []
