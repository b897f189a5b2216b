"""Whole models on the Triton kernels: prefill and decode steps against transformers' forward."""

from dataclasses import replace

import pytest
import torch
from parity_harness import N_SLOTS, PAGE_SIZE, assert_parity, make_checkpoint
from triton_cases import DEVICE, overridden

from sidewinder.checkpoint.reader import load_shard
from sidewinder.models.registry import build_model
from sidewinder.ops.dispatch import forced
from sidewinder.state.batch import PageTables, pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import TINY, run_ranks, tiny_oracle

pytestmark = pytest.mark.usefixtures("unchecked_integers")

LENGTHS, PROMPTS = [11, 6], [9, 4]
"""Two sequences, and how much of each is prefilled at once."""

SMALL = {
    "scan_pipelined": {"chunk": 4},
    "ssd_wide": {"chunk": 16, "block_t": 16},
    "paged_attention": {"split": 8, "tile": 64},
}


@pytest.mark.parametrize("family", TINY)
def test_prefill_and_decode_steps(tmp_path, family):
    checkpoint = make_checkpoint(tmp_path, tiny_oracle(family), LENGTHS)
    with forced("triton"), overridden(**SMALL):
        logits = run_ranks(1, lambda tp, collectives: _run(checkpoint, tp, collectives))[0]
    for number, reference in enumerate(checkpoint.logits):
        assert_parity(f"sequence {number}", reference, logits[number])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mamba2", {}),
        ("mamba2", {"n_groups": 1}),  # the norm's group is cut
        ("zamba", {}),
        ("zamba2", {"use_shared_attention_adapter": True}),
        ("bamba", {}),
        ("granitemoehybrid", {}),
        ("nemotron_h", {"n_groups": 4}),
        ("granite_experts", {}),
        ("nemotron_experts", {}),
        ("nemotron_experts", {"moe_latent_size": 12}),
        ("falcon_h1", {}),
        ("falcon_h1", {"mamba_n_groups": 1, "mamba_rms_norm": True, "attention_bias": True}),
        ("jamba_experts", {}),
    ],
    ids=[
        "mamba2",
        "mamba2, one group",
        "zamba",
        "zamba2",
        "bamba",
        "granite",
        "nemotron",
        "granite, experts",
        "nemotron, experts",
        "nemotron, experts of a narrower stream",
        "falcon-h1",
        "falcon-h1, one group",
        "jamba, experts",
    ],
)
def test_two_ranks(tmp_path, family, changes):
    checkpoint = make_checkpoint(tmp_path, tiny_oracle(family, **changes), [5])
    with forced("triton"), overridden(**SMALL):
        results = run_ranks(2, lambda tp, collectives: _run(checkpoint, tp, collectives))
    assert torch.equal(results[0][0], results[1][0])
    assert_parity("sequence 0", checkpoint.logits[0], results[0][0])


def _run(checkpoint, tp, collectives):
    """Logits of all tokens of the checkpoint's sequences on one rank."""
    weights = load_shard(checkpoint.folder, checkpoint.config, tp, torch.float32, DEVICE)
    model = build_model(checkpoint.config, tp, weights, collectives)
    pool = StatePool(
        model.config, model.dims, N_SLOTS, torch.float32, DEVICE, n_pages=9, page_size=PAGE_SIZE,
        poison=True,
    )  # fmt: skip
    tokens, slots = checkpoint.sequences, [2, 0][: len(checkpoint.sequences)]
    pages = [[5, 2], [8, 1]][: len(tokens)]
    prompts = [min(prompt, len(part) - 1) for prompt, part in zip(PROMPTS, tokens, strict=False)]
    first = [part[:prompt] for part, prompt in zip(tokens, prompts, strict=True)]
    batch = pack(first, slots, page_tables=pages, device=DEVICE)
    hidden = model.forward(batch, pool)
    logits = [[rows] for rows in model.logits(hidden).cpu().split(prompts)]
    for step in range(min(len(part) - n for part, n in zip(tokens, prompts, strict=True))):
        starts = [prompt + step for prompt in prompts]
        newest = [[part[start]] for part, start in zip(tokens, starts, strict=True)]
        batch = pack(newest, slots, starts, pages, DEVICE)
        if pool.kv is not None and step > 0:  # The first step takes the way of mixed batches.
            tables = PageTables(
                torch.tensor(pages, device=DEVICE), torch.tensor(starts, device=DEVICE)
            )
            batch = replace(batch, starts=(), page_tables=(), device_tables=tables)
        rows = model.logits(model.forward(batch, pool)).cpu()
        for part, row in zip(logits, rows, strict=True):
            part.append(row[None])
    return [torch.cat(part) for part in logits]
