"""What the page of shaped links computes from raw results."""

import links_report
import pytest
from links_report import Run

MB = 1e6


def engine(codec, overlap, total, sent, waited):
    numbers = dict.fromkeys(links_report.NUMBERS, 1.0)
    given = {"total_s": total, "sent_bytes": sent, "waited_s": waited}
    return {"all_reduce": codec, "overlap": overlap} | numbers | given


@pytest.fixture
def run():
    session = {
        "ranks": 2,
        "shape": "mamba-790m",
        "layers": 12,
        "load": {"batch": 16, "prompt": 512, "output": 64},
    }
    deltas = 16 * 575 * 1536 * 2 * 12 * links_report.HEADERS
    rest = 10 * MB
    engines = [
        engine("exact", "none", 9.0, deltas + rest, 4.0),
        engine("exact", "none", 11.0, deltas + rest, 2.0),
        engine("int8", "none", 8.0, deltas * 130 / 256 + rest, 1.5),
        engine("exact", "both", 6.0, deltas + rest, 0.75),
        engine("int8", "both", 5.0, deltas * 130 / 256 + rest, 0.5),
    ]
    return Run(session, {"rate": "1gbit", "messages": [], "engines": engines})


def test_gains_are_over_the_mean_of_exact_runs(run):
    assert run.name == "1gbit, 12 layers"
    assert run.plain["total_s"] == 10.0
    assert run.gain("int8", "none") == 1.25
    assert run.gain("exact", "both") == pytest.approx(10 / 6)


def test_what_a_codec_can_gain_follows_from_its_bytes(run):
    seconds = run.delta_bytes * 8 / 1e9
    assert run.byte_bound == pytest.approx(seconds / 10)
    assert run.bytes_fell("int8") == pytest.approx(256 / 130)
    expected = 10 / (10 - seconds + seconds * 130 / 256)
    assert run.possible("int8") == pytest.approx(expected)


def test_hidden_is_the_share_of_the_waiting_of_the_same_sums(run):
    assert run.hidden("exact", "both") == 0.75
    assert run.hidden("int8", "both") == pytest.approx(2 / 3)


def test_tables_have_a_line_for_every_way(run):
    codecs = list(links_report.codecs([run]))
    assert len(codecs) == 2
    assert "| int8 | 8.00 s, 1.00 | 1.25 |" in codecs[-1]
    assert codecs[-1].endswith("| 1.97 |\n")
    hiding = list(links_report.hiding([run]))
    assert [line.split(" | ")[1:3] for line in hiding[1:]] == [
        ["exact", "none"], ["exact", "both"], ["int8", "none"], ["int8", "both"],
    ]  # fmt: skip
    assert "| 75% |" in hiding[2]


def test_more_ranks_send_stripes_twice(run):
    four = Run(run.session | {"ranks": 4}, run.link)
    assert four.delta_bytes == pytest.approx(1.5 * run.delta_bytes)
    assert four.name == "1gbit, 4 ranks, 12 layers"
