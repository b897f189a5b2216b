"""Places to write: what is refused, and that looking leaves nothing behind."""

import pytest

from sidewinder.writable import check_file, check_folder


def test_a_folder_is_made_and_left_empty(tmp_path):
    check_folder(tmp_path / "a" / "b", "--cache")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_stays_as_it_is(tmp_path):
    file = tmp_path / "result.json"
    check_file(file, "--output")
    assert not file.exists()
    file.write_text("before")
    check_file(file, "--output")
    assert file.read_text() == "before"


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(ValueError, match=rf"--cache {path} .*a file is in the way"):
            check_folder(path, "--cache")
    with pytest.raises(ValueError, match=r"--cache /proc/nothing cannot be .*No such file"):
        check_folder(type(tmp_path)("/proc/nothing"), "--cache")
    with pytest.raises(ValueError, match=rf"--output {tmp_path} is a folder"):
        check_file(tmp_path, "--output")
    with pytest.raises(ValueError, match=r"--output .*file/result: the folder .*in the way"):
        check_file(tmp_path / "file" / "result", "--output")


def test_a_file_that_may_not_be_written(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    file.write_text("")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=r"--output .*result\.json cannot be written to"):
        check_file(file, "--output")
