"""Where one-shot sums end: measured, agreed, said, and pinned by a file."""

import pytest
from test_tcp import on_ranks

from sidewinder.collectives import thresholds
from sidewinder.collectives.base import SingleRank
from sidewinder.collectives.shared_memory import native
from sidewinder.collectives.thresholds import SIZES, fit, read_thresholds, use_thresholds


@pytest.fixture
def clocked(monkeypatch):
    def make(one_shot, two_shot):
        def seconds(_, size, limit):
            asked.append(size)
            return one_shot(size) if limit == thresholds.ALWAYS else two_shot(size)

        asked = []
        monkeypatch.setattr(thresholds, "_seconds", seconds)
        return asked

    return make


def test_the_fit_ends_where_the_one_shot_sum_is_slower(clocked):
    clocked(lambda n: 1e-9 * 3 * n, lambda n: 1e-4 + 1e-9 * n)
    assert fit(None) == max(size for size in SIZES if 2e-9 * size <= 1e-4)
    clocked(lambda _: 2.0, lambda _: 1.0)
    assert fit(None) == 0


def test_a_slow_link_is_not_measured_for_long(clocked):
    asked = clocked(lambda _: 0.04, lambda _: 0.05)
    assert fit(None) == SIZES[0]
    assert asked == [SIZES[0]] * 2


def test_the_file_pins(tmp_path):
    file = tmp_path / "thresholds.json"
    file.write_text('{"one_shot_bytes": 12345}')
    assert read_thresholds(str(file)) == 12345
    for text, words in [
        ("{", "not readable JSON"),
        ("[]", "write"),
        ('{"one_shot_bytes": -1}', "write"),
        ('{"one_shot_bytes": 1, "two_shot_bytes": 2}', "write"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            use_thresholds(SingleRank(), str(file))


@pytest.mark.skipif(native is None, reason="native module not built")
@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_agree_and_say_what_they_use(tmp_path, size):
    file = tmp_path / "thresholds.json"
    file.write_text('{"one_shot_bytes": 2048}')

    def rank(c):
        use_thresholds(c, None)
        fitted = c.one_shot_bytes, c.path
        c.one_shot_bytes, c.path = 7, "tcp"
        use_thresholds(c, str(file))
        return fitted, c.one_shot_bytes, c.path

    results = on_ranks(size, rank)
    assert all(result == results[0] for result in results)
    (fitted, path), pinned, pinned_path = results[0]
    if size == 2:
        assert (path, pinned, pinned_path) == ("tcp", 7, "tcp")
    else:
        assert fitted in (0, *SIZES)
        assert path == f"tcp (one-shot up to {fitted >> 10} KB, fitted)"
        assert (pinned, pinned_path) == (2048, "tcp (one-shot up to 2 KB, pinned)")
