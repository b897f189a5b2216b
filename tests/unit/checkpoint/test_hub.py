"""Finding a model: local folders, hub ids, and readable errors without a network."""

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from sidewinder.checkpoint import hub


@pytest.fixture
def snapshots(monkeypatch, tmp_path):
    """Stands in for the hub: records calls, writes what `files` lists if the patterns allow it."""
    from fnmatch import fnmatch

    calls, files = [], ["config.json"]

    def snapshot_download(name, revision, allow_patterns):
        calls.append((name, revision))
        for file in files:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return calls, files


def test_a_folder_is_itself(tmp_path, snapshots):
    assert hub.resolve_model(tmp_path) == hub.resolve_model(str(tmp_path)) == tmp_path
    assert snapshots[0] == []


@pytest.mark.parametrize(
    ("weights", "stored", "fetched"),
    [
        (True, ["model.safetensors", "pytorch_model.bin"], {"model.safetensors"}),
        (True, ["pytorch_model.bin"], {"pytorch_model.bin"}),
        (False, ["model.safetensors", "pytorch_model.bin"], set()),
    ],
)
def test_hub_id_prefers_safetensors(weights, stored, fetched, snapshots, tmp_path):
    calls, files = snapshots
    files += stored
    assert hub.resolve_model("someone/model", "v1", weights) == tmp_path
    assert set(calls) == {("someone/model", "v1")}
    assert {file.name for file in tmp_path.iterdir()} == {"config.json"} | fetched


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c", "~/nothing"])
def test_paths_that_do_not_exist(name, snapshots):
    with pytest.raises(ValueError, match="is not a folder; give a model folder or a hub id"):
        hub.resolve_model(name)
    assert snapshots[0] == []


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "weights").touch()
    with pytest.raises(ValueError, match="is not a folder"):
        hub.resolve_model(tmp_path / "weights")


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("outgoing traffic has been disabled\nmore"),
        HFValidationError("Repo id must be"),
        ConnectionError(""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_hub_are_readable(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(
        ValueError, match=r"model 'someone/model' at revision 'v1' .*HF_HUB_OFFLINE"
    ) as caught:
        hub.resolve_model("someone/model", "v1")
    assert "more" not in str(caught.value)
