"""Attention of prompts over pages: Triton's kernels and torch's version against the definition."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from prompt_cases import prompts
from triton_cases import DEVICE, DTYPES, TOLERANCE, here, launching, on_device, overridden, tuning

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import SingleRank
from sidewinder.models.registry import build_model
from sidewinder.ops.dispatch import forced
from sidewinder.ops.prompt_attention import reference, triton, vectorized
from sidewinder.parallel.group import SINGLE
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import assert_close, tiny_config

IMPLEMENTATIONS = {"torch": vectorized, "triton": triton}
SMALL = {
    "prompt_attention": {
        "rows": 16, "block_n": 32, "block_e": 16, "weigh_stages": 2,
        "block_t": 16, "block_v": 16, "average_stages": 2, "num_warps": 4,
    },
    "paged_attention": {"split": 16, "tile": 64},
}  # fmt: skip
HOPPERS_BYTES = 227 << 10
WHOLE = ([37], [0])
CHUNK = ([21], [50])
SEVERAL = ([17, 40, 2], [0, 3, 64])
MIXED = ([1, 1, 33, 5], [40, 0, 30, 0])
SINGLES = ([1, 1, 1], [0, 12, 37])
LOADS = pytest.mark.parametrize(("new", "stored"), [WHOLE, CHUNK, SEVERAL, MIXED, SINGLES], ids=str)
HEADS = pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(2, 2, 24), (4, 2, 40), (3, 1, 29)], ids=str
)


def result_of(implementation, arguments):
    with overridden(**SMALL):
        return on_device(implementation.prompt_attention, **arguments)


@LOADS
@HEADS
@DTYPES
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_is_the_reference(implementation, dtype, heads, kv_heads, width, new, stored):
    arguments = prompts(new, stored, heads, kv_heads, width, dtype)
    expected = reference.prompt_attention(**arguments)
    result = result_of(IMPLEMENTATIONS[implementation], arguments)
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert_close("y", expected, result, TOLERANCE[dtype])


@pytest.mark.parametrize(("load", "repeats"), [(WHOLE, 1), (CHUNK, 2)], ids=str)
def test_torchs_attention_is_given_what_it_does_in_one_kernel(load, repeats):
    """On GPUs it takes key heads of several query heads without a mask only."""
    arguments, given = prompts(*load, 4, 2, 40, torch.bfloat16), []

    def attend(q, k, v, **options):
        given.append((k.shape[1], v.shape[1], options["enable_gqa"]))
        return attention(q, k, v, **options)

    attention = torch.nn.functional.scaled_dot_product_attention
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attend):
        vectorized.prompt_attention(**arguments)
    assert given == [(2 * repeats, 2 * repeats, repeats == 1)]


@pytest.mark.parametrize("spread", [0.0, 30.0, 300.0])
def test_weights_of_all_sizes(spread):
    """Equal weights; tiles whose largest scores differ by far more than exponents of weights."""
    arguments = prompts(*SEVERAL, 2, 1, 24, torch.float16, spread)
    expected = reference.prompt_attention(**arguments)
    assert_close("y", expected, result_of(triton, arguments), 2e-3)


@pytest.mark.parametrize("blocks", [1, 3])
def test_blocks_are_worked_on_in_groups(monkeypatch, blocks):
    arguments = prompts(*SEVERAL, 2, 1, 24, torch.bfloat16)
    whole = result_of(triton, arguments)
    one = 2 * 16 * 96 * 2  # Two heads, 16 rows, 66 keys in tiles of 32, two bytes.
    monkeypatch.setattr(triton, "WEIGHTS_BYTES", blocks * one)
    assert torch.equal(result_of(triton, arguments), whole)
    with overridden(**SMALL), launching.recording() as launches:
        triton.prompt_attention(**arguments)
    weigh, average = launches[0], launches[1]
    assert weigh.grid == (blocks * 3, 2)
    assert average.grid == (blocks * 2, 2), "two parts of 16 columns"
    assert sum(each.grid[0] for each in launches[1::2]) == (2 + 3 + 1) * 2, "every block once"


def launches_of(arguments):
    with launching.recording() as launches:
        triton.prompt_attention(**arguments)
    return [each.kernel.fn.__name__ for each in launches]


def test_torchs_runs_until_ours_is_measured():
    ours, singles = ["weigh", "average"], ["attend_split", "join_splits"]
    arguments = prompts(*MIXED, 2, 1, 24, torch.bfloat16)
    assert launches_of(arguments) == singles
    with overridden(**SMALL):
        assert launches_of(arguments) == singles + ours
        assert launches_of(prompts(*SINGLES, 2, 1, 24, torch.bfloat16)) == singles
        assert launches_of(prompts(*WHOLE, 2, 1, 24, torch.float16)) == ours
        whole = prompts(*WHOLE, 2, 1, 24, torch.float32)
        assert launches_of(whole) == [], "float32 is not for matrix units"


def test_what_takes_longest_begins_first():
    index = prompts(*MIXED, 2, 1, 24, torch.bfloat16)["index"]
    blocks = index.blocks(16)
    assert blocks is index.blocks(16), "made once"
    assert blocks.keys == (63, 62, 46, 5)
    # First row, rows, place in the text, beginning of the text among the prompts' places.
    expected = [[34, 1, 62, 0], [18, 16, 46, 0], [2, 16, 30, 0], [35, 5, 0, 63]]
    assert blocks.table.tolist() == expected
    assert index.prompt_rows == 38
    assert torch.equal(index.places, torch.cat(index.read[2:]))
    assert index.singles.lengths.tolist() == [41, 1]
    assert index.singles.read.shape == (2, 48)
    assert torch.equal(index.singles.read[0, :41], index.read[0])


def test_candidates_differ_and_torchs_is_the_first():
    keys = [tuple(config.items()) for config in triton.CANDIDATES]
    assert triton.CANDIDATES[0] == triton.TORCH
    assert len(set(keys)) == len(keys) <= 16


@pytest.mark.parametrize("config", [*triton.SMALL, *triton.LARGE])
def test_every_candidate_is_the_reference_for_wide_heads(config):
    if config in triton.LARGE and DEVICE == "cuda":
        properties = torch.cuda.get_device_properties(0)
        if properties.shared_memory_per_block_optin < HOPPERS_BYTES:
            pytest.skip("this GPU has too little shared memory")
    arguments = prompts([1, 140], [5, 290], 2, 1, 464, torch.bfloat16)
    expected = reference.prompt_attention(**arguments)
    with overridden(prompt_attention=config):
        result = on_device(triton.prompt_attention, **arguments)
    assert_close("y", expected, result, TOLERANCE[torch.bfloat16])


def test_places_and_rows_beyond_32_bits():
    """Keys and queries 2^31 elements into their tensors; only the pages that are written exist."""
    arguments = prompts([1, 20], [3, 5], 2, 1, 16, torch.bfloat16)
    expected = reference.prompt_attention(**arguments)
    q, k, v, index = (here(arguments[name]) for name in ("q", "k", "v", "index"))
    apart, far = 2**27, 2**27 + 8
    memory = torch.empty(len(q) * apart, dtype=q.dtype, device=DEVICE)
    rows = memory.as_strided(q.shape, (apart, *q.stride()[1:])).copy_(q)
    keys, values = (memory[start:].view(-1, 1, 16) for start in (0, 2**20))
    keys[far : far + len(k)], values[far : far + len(v)] = k, v
    index = replace(index, read=tuple(places + far for places in index.read))
    with overridden(**SMALL):
        result = triton.prompt_attention(rows, keys, values, index, arguments["scale"])
    assert_close("y", expected, result.cpu(), TOLERANCE[torch.bfloat16])


@torch.inference_mode()
def zambas_steps():
    """Logits of a tiny Zamba's last rows: two prompts, then a chunk of one beside a token."""
    config = tiny_config("zamba")
    weights = random_shard(config, SINGLE, torch.float16, DEVICE)
    model = build_model(config, SINGLE, weights, SingleRank())
    pool = StatePool(
        config, LocalDims.of(config, SINGLE), 2, torch.float16, DEVICE, n_pages=9, page_size=16,
        poison=True,
    )  # fmt: skip
    tables, tokens = [[5, 2, 7], [8, 1]], [[3, 9, 4, 1] * 5, [8, 2] * 3]
    first = pack([tokens[0], tokens[1]], [0, 1], None, tables, DEVICE)
    found = [model.logits(model.forward(first, pool))]
    second = pack([[7], tokens[0][3:]], [1, 0], [6, 20], tables[::-1], DEVICE)
    found.append(model.logits(model.forward(second, pool)))
    return torch.cat(found).float().cpu()


def test_zamba_is_the_same_with_ours():
    with forced("triton"):
        theirs = zambas_steps()
        with overridden(**SMALL), mock.patch.object(triton, "_run", wraps=triton._run) as ran:
            ours = zambas_steps()
    assert ran.call_count == 2 * len(tiny_config("zamba").attention.layers)
    assert not torch.equal(ours, theirs)
    assert_close("logits", theirs, ours, 2**-7)


def test_what_was_measured_is_of_one_kernel_on_one_gpu(monkeypatch):
    monkeypatch.setattr(tuning, "table", lambda: {"this card|prompt_attention|8x128": {"rows": 0}})
    with tuning.gpu_named("this card"):
        assert tuning.was_measured("prompt_attention")
        assert not tuning.was_measured("prompt")
        assert not tuning.was_measured("row_product")
    with tuning.gpu_named("another card"):
        assert not tuning.was_measured("prompt_attention")
