"""Which programs follow each other, and that results do not depend on it.

Neighbours run at about one time on a GPU: those of the same tokens read whole rows together.
"""

from unittest import mock

import pytest
import torch
from ops_cases import make_case
from triton_cases import (
    here,
    interpreter_builder,
    launching,
    on_device,
    overridden,
    programs_backwards,
)

from sidewinder.ops.causal_conv1d import triton as conv
from sidewinder.ops.selective_scan import triton as scan
from sidewinder.ops.ssd_scan import triton as ssd

pytestmark = pytest.mark.skipif(not launching.is_interpreting(), reason="a GPU has its own order")

BLANK = 12345.0
CONV = {"conv_prefill": {"block_t": 8, "rows": 4, "block_c": 16}}
SCAN = {"scan_pipelined": {"chunk": 8, "block_d": 16}}
SSD = {"ssd_wide": {"chunk": 32, "block_t": 16, "block_n": 16, "block_p": 16}}


def conv_arguments(case, channels):
    return {
        "x": case.randn(case.seqs.n_tokens, channels),
        "weight": case.randn(4, channels),
        "bias": None,
        "seqs": case.seqs,
    }


def scan_arguments(case, channels, states):
    x, b = (case.randn(case.seqs.n_tokens, width) for width in (channels, states))
    A, vector = -torch.exp(case.randn(states, channels)), case.randn(channels)
    return {
        "x": x, "dt": x, "A": A, "B": b, "C": b, "D": vector, "z": x, "dt_bias": vector,
        "seqs": case.seqs,
    }  # fmt: skip


def ssd_arguments(case, heads, width, states):
    tokens, ones = case.seqs.n_tokens, torch.ones(heads)
    return {
        "x": case.randn(tokens, heads, width), "dt": case.randn(tokens, heads), "A": -ones,
        "B": case.randn(tokens, 1, states), "C": case.randn(tokens, 1, states), "D": ones,
        "dt_bias": ones, "seqs": case.seqs, "dt_limit": (0.0, 9.0),
        "head_group": torch.zeros(heads, dtype=torch.int64),
    }  # fmt: skip


OPERATORS = {
    "conv": (conv.causal_conv1d, CONV, lambda case: (conv_arguments(case, 33), (3, 33))),
    "scan": (scan.selective_scan, SCAN, lambda case: (scan_arguments(case, 33, 3), (3, 33))),
    "ssd": (ssd.ssd_scan, SSD, lambda case: (ssd_arguments(case, 2, 20, 5), (2, 5, 20))),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_results_do_not_depend_on_the_order_of_programs(name):
    """A slot is read by one program and written by one: else a half-written one would be read."""
    run, sizes, arguments_of = OPERATORS[name]
    case = make_case([30, 50, 2], seed=4)
    case.seqs.fresh[:] = torch.tensor([False, False, True])
    arguments, shape = arguments_of(case)
    results = []
    for backwards in (False, True):
        state = here(make_case([30, 50, 2], seed=4).randn(case.n_slots, *shape))
        with overridden(**sizes), programs_backwards(backwards):
            y = on_device(run, **arguments, state=state)
        results.append((y, state))
    for name, forth, back in zip(("y", "state"), *results, strict=True):
        assert torch.equal(forth, back), name


def launches_of(run, arguments, shape, sizes):
    """By kernel: the launches of one call."""
    with overridden(**sizes), launching.recording() as launches:
        run(**arguments, state=torch.zeros(3, *shape))
    return {launch.kernel.__name__: launch for launch in launches}


def written_by(launch, output, programs):
    """Which numbers of the output are written before the launch's program of this number begins."""
    output = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))[output]
    output.fill_(BLANK)
    builder, seen = interpreter_builder(), []
    plain = builder.set_grid_idx

    def look(*place):
        if place[0] == programs and not seen:
            seen.append(output != BLANK)
        plain(*place)

    with mock.patch.object(builder, "set_grid_idx", look):
        launch.kernel[launch.grid](*launch.arguments, **launch.constants)
    return seen[0] if seen else output != BLANK


def test_programs_of_the_convolution_go_along_rows():
    case, blocks = make_case([20], seed=0), 3  # of 8 tokens, and of 16 channels
    launch = launches_of(conv.causal_conv1d, conv_arguments(case, 33), (3, 33), CONV)["prefill"]
    assert launch.grid == (blocks * blocks,)
    for chunk in range(1, blocks + 1):
        written = written_by(launch, "y", chunk * blocks)
        assert written[: 8 * chunk].all()
        assert not written[8 * chunk :].any()


def test_programs_of_mamba2_go_through_all_heads_of_a_block():
    heads, width, states, tokens = 3, 20, 5, 40  # two chunks: of two blocks of rows, and of one
    arguments = ssd_arguments(make_case([tokens], seed=0), heads, width, states)
    launches = launches_of(ssd.ssd_scan, arguments, (heads, states, width), SSD)
    launch = launches["chunk_states"]
    assert launch.grid == (2 * heads, 2)
    written = written_by(launch, "added", heads)
    assert written[0].all()
    assert not written[1:].any()
    launch = launches["outputs"]
    assert launch.grid == (4 * heads, 2)
    for blocks in (1, 2, 3):
        written = written_by(launch, "y", blocks * heads)
        assert written[: 16 * blocks].all()
        assert not written[16 * blocks :].any()
    launch = launches["scores"]
    assert launch.grid == (4, 1, 2)
    written = written_by(launch, "products", 2)
    tiles = written[0, 0].view(2, 16, 2, 16).any(3).any(1)
    assert tiles.tolist() == [[True, False], [True, True]], "above the diagonal nothing is seen"
    assert not written[1:].any()


def test_backwards_is_backwards():
    builder = interpreter_builder()
    with programs_backwards():
        builder.set_grid_dim(2, 3, 1)
        builder.set_grid_idx(0, 2, 0)
    assert builder.grid_idx == (1, 0, 0)
