"""Each rank's shard alone, with collectives that cost what they cost on one card."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpu_checks.context import MODELS, PREFILL, Context
from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.absent import AbsentRanks
from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.config import ModelConfig
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.decode_graphs import DecodeGraphs
from sidewinder.engine.plan import Admission, SequenceStep
from sidewinder.engine.recorders import CudaRecorder, EagerRecorder, Spare
from sidewinder.models.base import Model
from sidewinder.models.registry import build_model
from sidewinder.parallel.group import SINGLE, TensorParallel
from sidewinder.sampling import SamplingParams
from sidewinder.sampling.sampler import Sampler
from sidewinder.sampling.vocab_shard import VocabShard
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import PackedBatch, pack
from sidewinder.state.pool import StatePool
from sidewinder.state.spec import PAGE_SIZE

PAGES_PER_SEQUENCE = 64


class LocalCost(AbsentRanks):
    """A group whose other ranks send what this one sends: the memory traffic, without a link.

    A sum reads as many parts as there are ranks, from this device's memory; a gather writes them.
    """

    def __init__(self, tp: TensorParallel) -> None:
        super().__init__(tp)
        self.path = "local copies"
        self.overlaps = False

    def all_reduce(self, x: Tensor) -> Tensor:
        return sum_in_rank_order(x.expand(self.tp.size, *x.shape))

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return torch.cat([x[..., :1].expand(*x.shape[:-1], size) for size in sizes], dim=-1)

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        inner = super().subgroup(partition)
        return LocalCost(inner.tp)


def run(context: Context) -> dict[str, Any]:
    """Prefill and decode times of rank 0's shard, at tp 1, 2, 4 and 8."""
    rows = []
    for model in MODELS:
        for size in (1, 2, 4) if context.dry_run else (1, 2, 4, 8):
            if not context.has(8):
                rows.append({"model": model, "tp": size, "skipped": "out of time"})
                continue
            try:
                rows.append({"model": model, "tp": size} | shard_times(context, model, size))
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                rows.append({"model": model, "tp": size, "error": text})
            context.keep({"rows": rows})
    return {"rows": rows}


@torch.inference_mode()
def shard_times(context: Context, model: str, size: int) -> dict[str, Any]:
    """Seconds of one prefill step and of decode steps of rank 0."""
    built, pool = prepared(context, model, size)
    batch = prefill_batch(context, built.config)
    result: dict[str, Any] = {"prefill_tokens": batch.seqs.n_tokens}
    # Python may need longer for a layer's launches than the card for a share of it: in a graph that
    # does not show. No graph holds a hybrid's steps with prompts.
    timed = context.seconds if pool.kv is None else context.eager_seconds
    result["prefill_s"] = timed(lambda: built.forward(batch, pool), repeats=5)
    result["prefill_with_launches_s"] = context.eager_seconds(lambda: built.forward(batch, pool), 3)
    for n in batch_sizes(context):
        step = decode_step(context, built, pool, n)
        result[f"decode_{n}_s"] = context.eager_seconds(step)
    return result


def prefill_batch(context: Context, config: ModelConfig) -> PackedBatch:
    """One long prompt, in the first slot and the first pages.

    Its tokens differ, as a text's do: on equal rows a card may draw less power, and be faster.
    """
    tokens = context.pick(PREFILL, 12)
    pages = [list(range(-(-tokens // PAGE_SIZE)))] if config.attention else None
    text = random.Random(0).choices(range(config.vocab_size), k=tokens)
    return pack([text], [0], page_tables=pages, device=context.device)


def batch_sizes(context: Context) -> tuple[int, int]:
    """Of decode steps."""
    return 1, context.pick(32, 3)


def prepared(context: Context, model: str, size: int) -> tuple[Model, StatePool]:
    """Rank 0's shard of a model with random weights, and a pool for the largest batch."""
    config = context.config(model)
    tp = TensorParallel(0, size) if size > 1 else SINGLE
    weights = random_shard(config, tp, context.dtype, context.device)
    built = build_model(config, tp, weights, LocalCost(tp) if size > 1 else SingleRank())
    slots = batch_sizes(context)[-1] + 1
    pool = StatePool(
        config, LocalDims.of(config, tp), slots, context.dtype, context.device,
        n_pages=slots * PAGES_PER_SEQUENCE,
    )  # fmt: skip
    for store in (pool.conv, pool.ssm, *((pool.kv.k, pool.kv.v) if pool.kv else ())):
        store.zero_()  # The decode steps go on from states that nothing has computed.
    return built, pool


def decode_step(context: Context, built: Model, pool: StatePool, n: int) -> Callable[[], object]:
    """A decode step of `n` sequences, drawing included, as something to call."""
    recorder = EagerRecorder() if context.dry_run else CudaRecorder()
    last = pool.conv.shape[1] - 1
    spare = Spare(last, last * PAGES_PER_SEQUENCE)
    graphs = DecodeGraphs(built, pool, recorder, spare, CallCounter())
    shard = VocabShard(built.dims.vocab_sizes, built.collectives)
    sampler = Sampler(built.config.vocab_size, context.device, shard)
    for slot in range(n):
        sampler.admit(Admission(slot, SamplingParams(temperature=0), 0, ()))
    parts = [
        SequenceStep(
            slot, (1,), 12,
            tuple(range(slot * PAGES_PER_SEQUENCE, (slot + 1) * PAGES_PER_SEQUENCE)), sample=True,
        )
        for slot in range(n)
    ]  # fmt: skip

    def step() -> None:
        started = graphs.start(parts, sampler)
        assert started is not None, "there is memory for its graph"
        graphs.finish(started, parts, sampler)

    return step
