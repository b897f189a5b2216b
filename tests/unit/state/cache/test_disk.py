"""The index of the disk tier: what it finds, what it refuses, what it deletes."""

import json
import os
import tempfile
import warnings

import pytest

from sidewinder.state.cache.disk import DiskIndex, check_disk
from sidewinder.state.cache.radix import RadixTree


def node(*tokens):
    return RadixTree().insert("", tokens)


def put(index, tokens, n_bytes=1000, n_ranks=1):
    """What ranks and scheduler do to write one state."""
    key = index.reserve("", node(*tokens), n_bytes)
    for rank in range(n_ranks):
        (index.folder / f"{key}.{rank}-of-{n_ranks}.safetensors").write_bytes(b"x" * 700)
    assert index.commit(key, "", node(*tokens)) is None
    return key


def test_a_later_run_finds_what_fits(tmp_path):
    index = DiskIndex(tmp_path / "new" / "folder", 10**6, "mine", 2)
    key = put(index, (1, 2, 3), n_ranks=2)
    again = DiskIndex(index.folder, 10**6, "mine", 1)
    (found,) = again.found
    assert (found.key, found.namespace, found.tokens) == (key, "", (1, 2, 3))
    assert again.used == index.used == sum(f.stat().st_size for f in index.folder.iterdir())


def test_other_models_are_strangers_and_go_first(tmp_path):
    put(DiskIndex(tmp_path, 10**6, "theirs", 1), (1, 2))
    with pytest.warns(UserWarning, match="1 of 1 states are of another"):
        index = DiskIndex(tmp_path, 2000, "mine", 1)
    assert index.found == []
    assert not index.has_room(1500)
    assert index.drop_stranger()
    assert index.has_room(1500)
    assert not index.drop_stranger()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"tokens": [1', '"tokens": [2'),
        lambda text: json.dumps(json.loads(text) | {"format": 99}),
        lambda text: text[:0] + "[]",
        lambda text: text[:0],
        lambda text: "\0" * len(text),
    ],
)
def test_a_damaged_manifest_is_a_stranger(tmp_path, damage):
    key = put(DiskIndex(tmp_path, 10**6, "mine", 1), (1, 2))
    file = tmp_path / f"{key}.json"
    file.write_text(damage(file.read_text()))
    with pytest.warns(UserWarning, match="not used"):
        assert DiskIndex(tmp_path, 10**6, "mine", 1).found == []


def test_a_state_without_all_its_parts_or_its_manifest_is_a_stranger(tmp_path):
    index = DiskIndex(tmp_path, 10**6, "mine", 2)
    one, two = put(index, (1,), n_ranks=2), put(index, (2,), n_ranks=2)
    (tmp_path / f"{one}.1-of-2.safetensors").unlink()
    (tmp_path / f"{two}.json").unlink()
    with pytest.warns(UserWarning, match="2 of 2"):
        assert DiskIndex(tmp_path, 10**6, "mine", 2).found == []


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    index = DiskIndex(tmp_path, 0, "mine", 1)
    assert (index.found, index.used) == ([], 0)
    key = put(index, (1,))
    index.delete(key)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "notes.json"]
    assert index.used == 0


def test_what_another_process_deletes_does_not_end_the_writing(tmp_path):
    index = DiskIndex(tmp_path, 10**6, "mine", 1)
    key = put(index, (1, 2))
    DiskIndex(tmp_path, 10**6, "mine", 1).delete(key)
    index.used_now(key)
    assert index.writable
    put(index, (1, 2, 3))
    # A file that is gone between the look at the folder and the look at the file.
    (tmp_path / f"{key}.json.77.tmp").symlink_to(tmp_path / "gone")
    later = DiskIndex(tmp_path, 10**6, "mine", 1)
    assert later.writable
    assert [found.tokens for found in later.found] == [(1, 2, 3)]


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="no more states are written"):
        index = DiskIndex(tmp_path / "file" / "folder", 10**6, "mine", 1)
    assert not index.writable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.unwritable("again")


def test_a_read_only_folder_is_read(tmp_path, monkeypatch):
    put(DiskIndex(tmp_path, 10**6, "mine", 1), (1, 2))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.warns(UserWarning, match="read-only"):
        index = DiskIndex(tmp_path, 10**6, "mine", 1)
    assert len(index.found) == 1
    assert not index.writable


def test_a_folder_that_neither_takes_nor_gives_is_refused(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(30, "Read-only file system")

    check_disk(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ValueError, match=r"state_cache_dir .*new .*Read-only file system"):
        check_disk(tmp_path / "new")
    put(DiskIndex(tmp_path / "new", 10**6, "mine", 1), (1, 2))
    check_disk(tmp_path / "new")


def test_keys_differ_by_all_that_matters(tmp_path):
    keys = {
        DiskIndex(tmp_path, 1, fingerprint, 1).reserve(namespace, node(*tokens), 1)
        for fingerprint in "ab"
        for namespace in ("", "salt")
        for tokens in ((1, 2), (1, 2, 3))
    }
    assert len(keys) == 8
