"""A model whose steps run plainly and from recordings, on two pools that must stay the same."""

import torch

from sidewinder.checkpoint.random import random_shard
from sidewinder.engine.counted import CallCounter, CountedCollectives
from sidewinder.engine.recorded import RecordedSteps
from sidewinder.models.registry import build_model
from sidewinder.ops import native_linear
from sidewinder.packing import pack_weights
from sidewinder.quantise import quantise_weights
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.cache.pages import PagePool
from sidewinder.state.pool import StatePool
from sidewinder.testing import tiny_config

STEPS = ([0, 3, 1], [2], [1, 0, 2], [3], [3, 1, 2], [0])
"""Slots of each step; batches of three and of one are recorded once and repeated twice."""
SLOTS = 5
PAGE_SIZE, PAGES = 2, 60
CHANGES = {
    "falcon_mamba": {"use_bias": False},  # as published; torch adds it, which is not repeated
    "mamba2, one group": {"n_groups": 1},
    "zamba, one head": {"n_mamba_heads": 1, "num_key_value_heads": 2},
    "zamba, four heads": {"n_mamba_heads": 4, "hidden_act": "silu"},
    "zamba, first layer": {"attn_layer_period": 2, "attn_layer_offset": 0},
    "granitemoehybrid, biases": {"attention_bias": True},
    "zamba2, adapted attention": {"use_shared_attention_adapter": True},
}


class Rank:
    """A model with two pools: of steps that may be repeated, and of plain ones.

    Args:
        family: of the tiny model; behind a comma what is different, a key of `CHANGES`.
        collectives: of this rank.
        dtype: of weights and activations.
        weight_dtype: "auto", or what the large matrices are rounded to, and packed where that pays.
    """

    def __init__(self, family, collectives, dtype=torch.float32, weight_dtype="auto"):
        config = tiny_config(family.split(",")[0], **CHANGES.get(family, {}))
        tp = collectives.tp
        self.counter = CallCounter()
        counted = CountedCollectives(collectives, self.counter)
        weights = random_shard(config, tp, dtype)
        if weight_dtype != "auto":
            weights = quantise_weights(weights, config.tie_embeddings, weight_dtype)
            bits = native_linear.packed_bits(torch.device("cpu"))
            weights = pack_weights(weights, False, bits)
        self.model = build_model(config, tp, weights, counted)
        dims = LocalDims.of(config, tp)
        self.pool, self.plain = (
            StatePool(config, dims, SLOTS, dtype, n_pages=PAGES, page_size=PAGE_SIZE, poison=True)
            for _ in range(2)
        )
        self.free_pages = PagePool(PAGES)
        self.pages = {slot: [] for slot in range(SLOTS)}
        self.recorded = RecordedSteps(self.model, self.pool, self.counter)

    def check(self, slots, starts, tokens=1):
        """One step of both kinds; whether it was one that is repeated."""
        texts = [[(7 * slot + 3 * starts[slot] + n) % 50 for n in range(tokens)] for slot in slots]
        tables = self.grown(slots, starts, tokens) if self.pool.kv else None
        batch = pack(texts, slots, [starts[slot] for slot in slots], tables)
        before = self.counter.calls
        expected = self.model.forward(batch, self.plain)
        plain_calls, before = self.counter.calls - before, self.counter.calls
        served = self.recorded.serves(batch)
        found = (self.recorded.forward if served else self.forward)(batch)
        assert expected.isfinite().all()
        assert torch.equal(expected, found)
        assert self.counter.calls - before == plain_calls
        for slot in slots:
            starts[slot] += tokens
        self.compare(slots, starts)
        return served

    def forward(self, batch):
        return self.model.forward(batch, self.pool)

    def grown(self, slots, starts, tokens):
        """The slots' page tables, with a page more where it is needed."""
        for slot in slots:
            needed = -(-(starts[slot] + tokens) // PAGE_SIZE)
            self.pages[slot] += self.free_pages.take(needed - len(self.pages[slot]))
            for pool in (self.pool, self.plain):
                pool.poison_entered(slot, starts[slot], self.pages[slot])
        return [self.pages[slot] for slot in slots]

    def end(self, slot, starts):
        """A sequence ends: others get its pages, which are poisoned then."""
        self.free_pages.release(self.pages[slot])
        self.pages[slot], starts[slot] = [], 0

    def compare(self, slots, starts):
        """What both pools hold of these slots, to the bit; and all pages, poison included."""
        for kind in ("conv", "ssm"):
            mine, other = getattr(self.pool, kind)[:, slots], getattr(self.plain, kind)[:, slots]
            assert torch.equal(mine, other)
        if self.pool.kv is None:
            return
        for mine, other in ((self.pool.kv.k, self.plain.kv.k), (self.pool.kv.v, self.plain.kv.v)):
            assert torch.equal(mine.isnan(), other.isnan())
            assert torch.equal(mine.nan_to_num(), other.nan_to_num())
        for slot in slots:
            stored, _ = self.pool.kv.gather(self.pages[slot], starts[slot])
            assert stored.isfinite().all()

    def check_all(self):
        starts = dict.fromkeys(range(SLOTS), 0)
        assert not self.check([0, 1], starts, tokens=4)
        return [self.check(slots, starts) for slots in STEPS]
