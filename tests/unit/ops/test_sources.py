"""Sequences that go on from others' states: as steps of one token, one after another."""

import pytest
import torch

from sidewinder.ops import native
from sidewinder.ops.causal_conv1d import reference as conv_reference
from sidewinder.ops.causal_conv1d import vectorized as conv_torch
from sidewinder.ops.selective_scan import chunked as scan_torch
from sidewinder.ops.selective_scan import reference as scan_reference
from sidewinder.ops.ssd_scan import chunked as ssd_torch
from sidewinder.ops.ssd_scan import reference as ssd_reference
from sidewinder.state.batch import pack
from sidewinder.testing import assert_close

CHANNELS, STATES, HEADS, TAPS = 70, 5, 3, 4
SLOTS = 9
# Three sequences in slots 3, 0 and 7; the first has two drafts, the third one. A prompt follows.
WAVES = [[(3, 3, 0), (0, 0, 1), (7, 7, 2)], [(3, 5, 3), (7, 1, 4)], [(5, 2, 5)]]
"""Source, slot and row of each token; a wave goes on from earlier ones only."""
PROMPT = (6, 6, slice(6, 10))
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


def _conv(module):
    def run(inputs, state, seqs, rows):
        return module.causal_conv1d(
            inputs["x"][rows], inputs["taps"], inputs["bias"], state["conv"], seqs
        )

    return run


def _scan(module):
    def run(inputs, state, seqs, rows):
        x, dt, B, C, z = (inputs[name][rows] for name in ("x", "dt", "B", "C", "z"))
        A, D, bias = inputs["A"], inputs["D"], inputs["bias"]
        return module.selective_scan(x, dt, A, B, C, D, z, bias, state["scan"], seqs)

    return run


def _ssd(module):
    def run(inputs, state, seqs, rows):
        x = inputs["x"][rows, : HEADS * 16].unflatten(1, (HEADS, 16))
        dt, B, C = inputs["dt"][rows, :HEADS], inputs["B"][rows, None], inputs["C"][rows, None]
        A, D, bias = inputs["A"][0, :HEADS], inputs["D"][:HEADS], inputs["bias"][:HEADS]
        group = torch.zeros(HEADS, dtype=torch.int64)
        return module.ssd_scan(x, dt, A, B, C, D, bias, state["ssd"], seqs, (0.0, torch.inf), group)

    return run


OPERATORS = {
    "conv, reference": _conv(conv_reference),
    "conv, torch": _conv(conv_torch),
    "scan, reference": _scan(scan_reference),
    "scan, torch": _scan(scan_torch),
    "ssd, reference": _ssd(ssd_reference),
    "ssd, torch": _ssd(ssd_torch),
}
if native.is_available():
    OPERATORS |= {
        "conv, native": _conv(native),
        "scan, native": _scan(native),
        "ssd, native": _ssd(native),
    }


def tensors(dtype):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    rows = PROMPT[2].stop
    inputs = {name: draw(rows, CHANNELS).to(dtype) for name in ("x", "dt", "z")}
    inputs |= {name: draw(rows, STATES).to(dtype) for name in ("B", "C")}
    inputs |= {"A": -draw(STATES, CHANNELS).exp(), "D": draw(CHANNELS), "bias": draw(CHANNELS)}
    inputs["taps"] = draw(TAPS, CHANNELS)
    state = {
        "conv": draw(SLOTS, TAPS - 1, CHANNELS).to(dtype),
        "scan": draw(SLOTS, STATES, CHANNELS),
        "ssd": draw(SLOTS, HEADS, STATES, 16).to(dtype),
    }
    return inputs, state


def together(fresh):
    singles = [token for wave in WAVES for token in wave]
    sources, slots, _ = zip(*singles, PROMPT, strict=True)
    starts = [
        0 if slot == fresh and source == slot else 1 for source, slot, _ in (*singles, PROMPT)
    ]
    lengths = [*[1] * len(singles), PROMPT[2].stop - PROMPT[2].start]
    return pack(
        [[0] * length for length in lengths], list(slots), starts, sources=list(sources),
        waves=(3, 5),
    ).seqs  # fmt: skip


def assert_same(operator, expected, found):
    """Bit for bit, but for torch's operators, whose sums depend on the batch."""
    if operator.endswith("torch"):
        assert_close(operator, expected.float(), found.float(), TOLERANCES[found.dtype])
    else:
        assert torch.equal(expected, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fresh", [None, 3, 0])
@pytest.mark.parametrize("operator", OPERATORS)
def test_drafts_are_as_steps_one_after_another(operator, fresh, dtype):
    run = OPERATORS[operator]
    inputs, state = tensors(dtype)
    plain = {name: own.clone() for name, own in state.items()}
    found = run(inputs, state, together(fresh), slice(0, PROMPT[2].stop))
    for source, slot, row in (token for wave in WAVES for token in wave):
        for own in plain.values():
            own[slot] = own[source]
        start = 0 if slot == fresh and source == slot else 1
        step = pack([[0]], [slot], [start]).seqs
        assert_same(operator, run(inputs, plain, step, slice(row, row + 1))[0], found[row])
    length = PROMPT[2].stop - PROMPT[2].start
    prompt = pack([[0] * length], [PROMPT[0]], [1]).seqs
    assert_same(operator, run(inputs, plain, prompt, PROMPT[2]), found[PROMPT[2]])
    name = operator.split(",")[0]
    assert_same(operator, plain[name], state[name])  # and no other slot is written


@pytest.mark.skipif(not native.is_available(), reason="needs the native module")
def test_a_source_that_does_not_exist_is_refused():
    inputs, state = tensors(torch.float32)
    seqs = pack([[0]], [0], [1], sources=[SLOTS]).seqs
    for operator in ("conv, native", "scan, native", "ssd, native"):
        with pytest.raises(ValueError, match="slots"):
            OPERATORS[operator](inputs, state, seqs, slice(0, 1))
