"""Finding a model: local folders, hub ids, and readable errors without a network."""

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from sidewinder.checkpoint import hub
from sidewinder.config import load_model_config


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


def test_models_near_a_wrong_path_are_named(tmp_path, monkeypatch):
    for name in ("mamba", "zamba"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    for wrong in ("models/mambo", "./models/mambo"):
        with pytest.raises(ValueError, match=r"; there are models/mamba, models/zamba$"):
            hub.resolve_model(wrong)
    with pytest.raises(ValueError, match=r"needs its config.json; there are models/mamba, models"):
        load_model_config("models")
    for elsewhere in ("mambo", "owner/mambo"):
        with pytest.raises(ValueError, match="no network") as error:
            hub.resolve_model(elsewhere)
        assert "there are" not in str(error.value)
