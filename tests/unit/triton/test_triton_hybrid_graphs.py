"""A hybrid's steps with prompts in a fixed shape: lengths and pages are read on the device."""

import pytest
import torch
import triton.language as tl
from graph_cases import STEPS, Part, answers, assert_same, fixed_shapes, shapes_of
from prompt_cases import PAGE, fixed, prompts
from triton_cases import TOLERANCE, here, launching, overridden, poisoned_outputs, tuning

from sidewinder.engine import prompt_graphs
from sidewinder.ops.dispatch import forced
from sidewinder.ops.prompt_attention import reference, vectorized
from sidewinder.ops.prompt_attention import triton as attention
from sidewinder.state.pool import POISON_VARIABLE
from sidewinder.state.spec import PAGE_SIZE
from sidewinder.testing import assert_close, run_ranks

pytestmark = pytest.mark.usefixtures("unchecked_integers")

LOADS = [
    ([37], [0]),
    ([21], [43]),
    ([17, 40, 2], [0, 3, 62]),
    ([1, 1, 33, 5], [40, 0, 30, 0]),
]  # fmt: skip
"""New tokens of each sequence and stored ones; the longest fill the sixteen pages."""
ROOM, N_EMPTY, ROWS = 16, 2, 130


def given(load, dtype, rows=ROWS, room=ROOM, heads=4, kv_heads=2, width=24):
    """Arguments of the operator, and the index of a step of fixed shape in place of theirs."""
    arguments = prompts(*load, heads, kv_heads, width, dtype)
    used = torch.cat(arguments["index"].read) // PAGE
    spare = next(page for page in range(len(arguments["k"]) // PAGE) if page not in used)
    return arguments, fixed(arguments["index"], N_EMPTY, rows, room, spare)


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")
@pytest.mark.parametrize("load", LOADS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_of_a_fixed_shape_is_the_reference(load, dtype):
    """Of all rows that belong to sequences; keys and values of padding are NaN."""
    arguments, index = given(load, dtype)
    expected = reference.prompt_attention(**arguments)
    q = torch.randn(ROWS, *arguments["q"].shape[1:]).to(dtype)
    q[: len(expected)] = arguments["q"]
    tensors = [here(each) for each in (q, arguments["k"], arguments["v"])]
    with overridden(prompt_attention_fixed=ATTENTION), poisoned_outputs():
        result = attention.prompt_attention(*tensors, here(index), arguments["scale"])
    assert_close("y", expected, result[: len(expected)].cpu(), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("rows", [50, 300])
def test_all_shapes_have_the_block_sizes_of_one(monkeypatch, rows):
    """Which are measured: there are too many shapes."""
    best = dict(attention.LARGE[1])
    table = {"card|prompt_attention_fixed|torch.bfloat16x4x24x2": best}
    monkeypatch.setattr(tuning, "table", lambda: table)
    arguments, index = given(LOADS[0], torch.bfloat16, rows=rows, room=best["rows"] // PAGE)
    q = torch.zeros(rows, 4, 24, dtype=torch.bfloat16)
    with tuning.gpu_named("card"), launching.recording() as launches:
        attention.prompt_attention(q, arguments["k"], arguments["v"], index, 1.0)
    names = ("weigh_stages", "average_stages")
    assert [each.options["num_stages"] for each in launches] == [best[name] for name in names]


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_places_of_a_fixed_shape_are_those_of_the_step(load):
    arguments, index = given(load, torch.bfloat16)
    expected, n = arguments["index"], arguments["index"].bounds[-1]
    assert torch.equal(index.positions[:n], expected.positions)
    assert torch.equal(index.write[:n], expected.write)
    assert index.prompt_rows == ROWS - expected.n_singles
    places = index.places.view(-1, ROOM * PAGE)
    texts = expected.read[expected.n_singles :]
    for own, text in zip(places, texts, strict=False):
        assert torch.equal(own[: len(text)], text)
    if expected.n_singles:
        singles, found = expected.singles, index.singles
        assert torch.equal(found.write, singles.write)
        assert torch.equal(found.lengths, singles.lengths)
        assert torch.equal(found.positions, singles.positions)
        for own, places in zip(found.read, expected.read, strict=False):
            assert torch.equal(own[: len(places)], places)


@pytest.mark.parametrize("load", LOADS, ids=str)
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_blocks_of_a_fixed_shape_are_those_of_the_step(load, rows):
    arguments, index = given(load, torch.bfloat16)
    expected, last = arguments["index"], arguments["index"].bounds[-1]
    found = index.blocks(rows)
    assert found is index.blocks(rows), "made once for all layers"
    assert len(found.keys) == len(found.table)
    assert set(found.keys) == {ROOM * PAGE}, "the host does not know how many keys there are"
    used = [block for block in found.table.tolist() if block[1]]
    assert all(position + n <= ROOM * PAGE for _, n, position, _ in used)
    assert all(position == 0 for _, n, position, _ in found.table.tolist() if not n)
    # Begins of texts differ: here every prompt has all of its pages' room.
    begins = [0]
    for places in expected.read[expected.n_singles :]:
        begins.append(begins[-1] + len(places))
    wanted = [
        [first, n, position, begins.index(text) * ROOM * PAGE]
        for first, n, position, text in expected.blocks(rows).table.tolist()
    ]
    assert sorted(block for block in used if block[0] < last) == sorted(wanted)
    padding = [block for block in used if block[0] >= last]
    assert sum(n for _, n, _, _ in padding) == ROWS - last


def test_other_backends_refuse_a_fixed_shape():
    arguments, index = given(LOADS[0], torch.bfloat16)
    arguments["index"] = index
    for operator in (reference.prompt_attention, vectorized.prompt_attention, vectorized.prompts):
        with pytest.raises(AssertionError, match="read lengths on the device"):
            operator(**arguments)


ATTENTION = {
    "rows": 16, "block_n": 32, "block_e": 16, "weigh_stages": 2,
    "block_t": 16, "block_v": 16, "average_stages": 2, "num_warps": 4,
}  # fmt: skip
LONGER = [
    *STEPS,
    [Part(2, 1), Part(0, 5)],  # behind 47 tokens, in four pages
    [Part(3, 1), Part(0, 2), Part(1, 18, new=True)],  # two blocks of rows; pages change hands
    [Part(2, 1), Part(3, 1), Part(1, 1), Part(0, 10)],  # to the end of the fourth page
]


@pytest.mark.parametrize(("family", "tp"), [("zamba", 1), ("bamba", 2)])
def test_same_answers_of_hybrids(family, tp, monkeypatch):
    """In float32, which ours multiplies under the interpreter only, against torch's attention."""
    monkeypatch.setenv(POISON_VARIABLE, "1")
    monkeypatch.setattr(prompt_graphs, "reads_lengths", lambda _: True)
    monkeypatch.setattr(prompt_graphs, "was_timed", lambda: True)

    def run(_, collectives):
        return answers(family, collectives, steps=LONGER)

    with forced("triton"):
        plain = run_ranks(tp, run)
        monkeypatch.setattr(attention, "reads_lengths", lambda _: True)
        monkeypatch.setitem(attention.OPERANDS, torch.float32, tl.float32)
        with fixed_shapes(tp) as recorder, overridden(prompt_attention_fixed=ATTENTION):
            fixed = run_ranks(tp, run)
            shapes = shapes_of(LONGER, PAGE_SIZE)
    assert {shape.pages for shape in shapes} == {1, 4}
    assert recorder.recorded == tp * len(shapes)
    assert_same(plain, fixed, 1e-5)
