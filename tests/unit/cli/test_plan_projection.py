"""`sidewinder plan --gpu`: projected speed on the command line."""

import json

import pytest

from sidewinder.cli import main
from sidewinder.cli.main import BAD_USAGE, DONE
from sidewinder.quantise import SLICE_BYTES

BASE = ["plan", "mamba-2.8b", "--tp", "2"]


def test_a_published_shape_needs_no_folder(capsys):
    assert main(BASE) == DONE
    assert "64 layers, d_model 2560" in capsys.readouterr().out


def test_the_projection_is_shown_and_in_the_json(capsys):
    options = [*BASE, "--gpu", "a100", "--link", "nvlink3", "--batch", "4", "--prompt", "512"]
    assert main(options) == DONE
    text = capsys.readouterr().out
    assert "PROJECTED, not measured: 2 x A100" in text
    assert "int8 (decode exact)" in text
    assert main([*options, "--json"]) == DONE
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["projection"]["load"]["prompt"] == 512
    assert report["projection"]["policies"][0]["all_reduce"] == "exact"


def test_integer_weights_are_fewer_bytes_and_less_time(capsys):
    def report(weight_dtype):
        options = ["plan", "falcon-mamba-7b", "--gpu", "h100", "--weight-dtype", weight_dtype]
        assert main([*options, "--json"]) == DONE
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    reports = plain, int8, int4 = report("auto"), report("int8"), report("int4")
    assert (plain["weight_dtype"], int8["weight_dtype"]) == ("auto", "int8")
    assert int4["weight_dtype"] == "int4"
    weights = [each["projection"]["memory"]["weights"] for each in reports]
    assert 0.5 * weights[0] < weights[1] < 0.56 * weights[0]
    assert 0.29 * weights[0] < weights[2] < 0.36 * weights[0]
    tpot = [each["projection"]["policies"][0]["tpot_s"] for each in reports]
    assert tpot[1] < 0.7 * tpot[0]
    assert tpot[2] < 0.8 * tpot[1]
    activations = [each["projection"]["memory"]["activations"] for each in reports]
    assert activations[1] - activations[0] == SLICE_BYTES
    assert activations[2] == activations[1]


def test_a_link_of_ones_own(capsys):
    slow, fast = (
        [*BASE, "--gpu", "a100", "--link", "pcie4", "--link-gbps", rate, "--link-us", "1", "--json"]
        for rate in ("1", "100")
    )

    def ttft(argv):
        assert main(argv) == DONE
        projection = json.loads(capsys.readouterr().out.splitlines()[-1])["projection"]
        assert projection["link"]["source"] == "given on the command line"
        return projection["policies"][0]["ttft_s"]

    assert ttft(fast) < ttft(slow)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--gpu", "abacus", "--link", "pcie4"], "known: a10"),
        (["--gpu", "a100"], "needs --link"),
        (["--weight-dtype", "int3"], "--weight-dtype 'int3' is unknown; use auto or int8"),
        (["--gpu", "a100", "--link", "string"], "known: pcie3"),
        (["--gpu", "a100", "--link", "pcie4", "--batch", "0"], "--batch 0"),
        (["--gpu", "a100", "--link", "pcie4", "--link-us", "0"], "--link-us 0"),
        (["--gpu", "a100", "--link", "pcie4", "--link-us", "nan"], "--link-us nan"),
        (["--gpu", "a100", "--link", "pcie4", "--link-gbps", "inf"], "--link-gbps inf"),
        (["--gpu", "a100", "--link", "pcie4", "--calibration", "/nowhere"], "/nowhere"),
        (["--link", "pcie4"], "--link is of a projection; say for which --gpu"),
        (["--batch", "4"], "--batch is of a projection"),
        (["--hide-sums"], "--hide-sums is of a projection"),
    ],
)
def test_refusals(extra, message, capsys):
    assert main([*BASE, *extra]) == BAD_USAGE
    assert message in capsys.readouterr().err
