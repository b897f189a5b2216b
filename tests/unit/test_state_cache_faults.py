"""A disk tier that is full, damaged, read-only or another model's costs no request."""

import os
import warnings

import pytest
import torch
from cache_cases import PROMPT, cached, expected_row, fill, first_logprobs, same

from sidewinder import LLM, SamplingParams
from sidewinder.state.cache import parts
from sidewinder.testing import save_tiny, save_tokenizer


@pytest.fixture(scope="module", params=["mamba", "zamba"])
def folder(request, tmp_path_factory):
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param), vocab_size=120)
    return save_tokenizer(folder, merges=0)


@pytest.fixture
def disk(folder, tmp_path):
    """A folder with the states of `PROMPT`."""
    with cached(folder, state_cache_dir=str(tmp_path)) as model:
        first_logprobs(model, PROMPT)
    return tmp_path


def run(folder, disk, **options):
    """Row, cached tokens, statistics and warnings of a new start on what is in `disk`."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with cached(folder, state_cache_dir=str(disk), **options) as model:
            expected = expected_row(model, PROMPT)
            row, n_cached = first_logprobs(model, PROMPT)
            same("after a fault", expected, row)
            stats = model.cache_stats()
    return n_cached, stats, [str(w.message) for w in said if "state_cache_dir" in str(w.message)]


def test_a_sound_disk_is_silent(folder, disk):
    n_cached, stats, said = run(folder, disk)
    assert (n_cached, stats.hits_disk, said) == (128, 1, [])


def test_damaged_states_are_run_again_and_said_once(folder, disk):
    for file in disk.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    n_cached, stats, said = run(folder, disk, state_cache_interval=64)
    assert n_cached == 0
    assert stats.disk_errors > 0
    assert [line for line in said if "could not be read" in line] == said
    assert len(said) == 1
    assert run(folder, disk)[0] >= 128, "written anew"


def test_states_that_vanish_are_run_again(folder, disk):
    with cached(folder, state_cache_dir=str(disk)) as model:
        for file in disk.iterdir():
            file.unlink()
        with pytest.warns(UserWarning, match="could not be read"):
            assert first_logprobs(model, PROMPT)[1] == 0
        assert first_logprobs(model, PROMPT)[1] >= 128


@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"state_cache_dtype": "int8"}])
def test_other_settings_reject_what_is_there(folder, disk, options):
    n_cached, stats, said = run_loosely(folder, disk, **options)
    assert (n_cached, stats.hits_disk) == (0, 0)
    assert any("of another model or of other settings" in line for line in said)


def run_loosely(folder, disk, **options):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with cached(folder, state_cache_dir=str(disk), **options) as model:
            n_cached = first_logprobs(model, PROMPT)[1]
            stats = model.cache_stats()
    return n_cached, stats, [str(w.message) for w in said]


def test_other_weights_reject_what_is_there(folder, disk, tmp_path_factory):
    family = "zamba" if "zamba" in str(folder) else "mamba"
    other = save_tiny(family, tmp_path_factory.mktemp("other"), seed=1, vocab_size=120)
    n_cached, _, said = run_loosely(other, disk)
    assert n_cached == 0
    assert any("of another model or of other settings" in line for line in said)


def test_a_full_disk_is_said_once_and_costs_nothing(folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "save_file", full)
    with cached(folder) as model:
        n_bytes = model.runner_report.cache.state_bytes
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        options = {"state_cache_bytes": 3 * n_bytes, "state_cache_dir": str(tmp_path)}
        with cached(folder, **options) as model:
            expected = expected_row(model, PROMPT)
            first_logprobs(model, PROMPT)
            fill(model)
            same("on a full disk", expected, first_logprobs(model, PROMPT)[0])
            assert model.cache_stats().disk_errors > 0
            assert model.cache_stats().snapshots_disk == 0
    lines = [str(w.message) for w in said if "state_cache_dir" in str(w.message)]
    assert len(lines) == 1
    assert "no more states are written" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_end_is_counted_and_said_once(folder, tmp_path, monkeypatch):
    write, n_written = parts.save_file, 0

    def filling(*values, **options):
        nonlocal n_written
        n_written += 1
        if n_written > 2:
            raise OSError(28, "No space left on device")
        write(*values, **options)

    monkeypatch.setattr(parts, "save_file", filling)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with cached(folder, state_cache_dir=str(tmp_path)) as model:
            first_logprobs(model, PROMPT)
            n_kept = model.cache_stats().snapshots_device
            assert n_written == 0
    stats = model.cache_stats()
    assert (stats.disk_writes, stats.disk_errors) == (2, n_kept - 2)
    (line,) = [str(w.message) for w in said if "state_cache_dir" in str(w.message)]
    assert f"{n_kept - 2} kept states were not written to state_cache_dir {tmp_path}" in line
    assert "No space left on device" in line
    monkeypatch.undo()
    with cached(folder, state_cache_dir=str(tmp_path)) as model:
        assert model.cache_stats().snapshots_disk == 2


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_serves_and_takes_nothing(folder, disk):
    names = sorted(file.name for file in disk.iterdir())
    disk.chmod(0o500)
    n_cached, _, said = run(folder, disk)
    disk.chmod(0o700)
    assert n_cached == 128
    assert len(said) == 1
    assert sorted(file.name for file in disk.iterdir()) == names


@pytest.mark.parametrize("name", ["file", "file/states"])
def test_a_folder_that_cannot_be_is_refused_before_ranks_start(folder, tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(LLM, "_start", lambda _: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=r"state_cache_dir .*a file is in the way.*name a folder"):
        LLM(folder, device="cpu", state_cache_dir=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"state_cache_dir .*cannot be written to"):
        LLM(folder, device="cpu", state_cache_dir="/proc/self/states")


def test_a_folder_for_states_and_no_memory_for_them(folder, tmp_path):
    with pytest.raises(ValueError, match=r"state_cache_dir=.* no state with state_cache_bytes=0"):
        LLM(folder, device="cpu", state_cache_dir=str(tmp_path), state_cache_bytes=0)


def test_the_byte_limit_holds(folder, tmp_path):
    options = {"state_cache_dir": str(tmp_path), "state_cache_disk_bytes": 100_000}
    for _ in range(2):
        with cached(folder, **options) as model:
            first_logprobs(model, PROMPT)
            fill(model)
        assert 0 < sum(file.stat().st_size for file in tmp_path.iterdir()) <= 100_000


def test_a_cache_too_small_for_a_state_says_so(folder):
    with pytest.warns(UserWarning, match="no prefix can be reused: one state takes"):
        with_small = LLM(folder, dtype="float32", device="cpu", state_cache_bytes=100)
    with with_small as model:
        params = SamplingParams(max_tokens=1)
        for _ in range(2):
            assert model.generate([PROMPT], params)[0].metrics.cached_tokens == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no prefix")
        LLM(folder, dtype="float32", device="cpu", state_cache_bytes=0).close()


def test_more_than_is_free_is_refused(folder):
    with pytest.raises(ValueError, match=r"state_cache_bytes=.* is more than the .* that are free"):
        LLM(folder, device="cpu", state_cache_bytes=1 << 60)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state_cache_bytes", -1),
        ("state_cache_interval", 4),
        ("state_cache_dtype", "int4"),
        ("state_cache_dir", ""),
        ("state_cache_disk_bytes", 0),
    ],
)
def test_options_that_cannot_be(folder, name, value):
    with pytest.raises(ValueError, match=name):
        LLM(folder, **{name: value})
    assert torch.get_num_threads() >= 1
