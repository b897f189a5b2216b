"""What engines of a model launch on a GPU, found out without the GPU and without weights.

Steps of the kinds that differ for a compiler are run on tensors without memory, every rank's in
turn, and their launches recorded.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from sidewinder.checkpoint.random import empty_shard
from sidewinder.collectives.absent import AbsentRanks, absent_gpus
from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.quantised.all_reduce import quantised
from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.engine.buckets import Bucket
from sidewinder.engine.decode_sizes import (
    FEWEST_PAGES,
    LARGEST_BUCKET,
    StepSize,
    bucket_of,
    sizes_with_drafts,
)
from sidewinder.engine.memory import DEFAULT_LENGTH
from sidewinder.engine.prompt_graphs import StepInputs
from sidewinder.engine.prompt_shapes import FEWEST_ROWS, StepShape, most_rows, shapes_for
from sidewinder.layers.overlap import overlap_of
from sidewinder.layers.weights import Weight
from sidewinder.models.base import Model
from sidewinder.models.registry import build_model
from sidewinder.ops import tuning
from sidewinder.ops.ahead import Specialisation, check_compiler, unique
from sidewinder.ops.dispatch import forced
from sidewinder.ops.launching import Target, power_of_two, recording
from sidewinder.ops.prompt_attention import reads_lengths
from sidewinder.parallel.devices import DTYPES
from sidewinder.parallel.group import TensorParallel
from sidewinder.projection.devices import Device, device_of_product
from sidewinder.quantise import EMBEDDING, HEAD, empty_weight, rounded_bits
from sidewinder.sensitivity import policy_for
from sidewinder.sharding.dims import check_tp
from sidewinder.state.batch import PackedBatch, pack
from sidewinder.state.pool import StatePool
from sidewinder.state.spec import PAGE_SIZE

META = torch.device("meta")

MOST_SINGLES = 16
"""Single tokens beside prompts: a compiler sees whether their number is a multiple of 16."""


def launched_by(
    engine: EngineConfig, config: ModelConfig, device: Device, progress: bool = False
) -> tuple[Specialisation, ...]:
    """The kernels that an engine's steps launch, as they are compiled.

    With default block sizes, and with those that the table of `ops.tuning` has for this GPU.

    Args:
        engine: `dtype` resolved; `tp`, `weight_dtype`, the sums, and the sizes of batches, steps
            and texts count.
        config: the architecture.
        device: the GPU.
        progress: show a bar on standard error.

    Raises:
        ValueError: if `tp` or the policy of sums does not fit the model, the device is no GPU, or
            Triton is absent.
    """
    check_compiler()
    check_tp(config, engine.tp)
    found: dict[Specialisation, None] = {}
    with recording(target_of(device)) as launches, forced("triton"):
        for product in _products(device):
            with tuning.gpu_named(product):
                steps = _all_steps(engine, config)
                for step in tqdm(steps, desc="steps", unit="", disable=not progress):
                    step()
                    found |= unique(launches)
                    launches.clear()
    return tuple(found)


def target_of(device: Device) -> Target:
    """What launches depend on. Raises ValueError for a device that is no GPU."""
    if not device.capability:
        raise ValueError(f"{device.name} is no GPU: nothing is compiled for it")
    return Target(device.capability, device.multiprocessors)


def _products(device: Device) -> list[str]:
    """Names that stand for the device in the table of block sizes; the first has none there."""
    known = [name for name in tuning.products() if device_of_product(name) == device]
    return ["", *sorted(known)]


def _all_steps(engine: EngineConfig, config: ModelConfig) -> Iterator[Callable[[], object]]:
    for rank in range(engine.tp):
        for collectives in _transports(engine, config, TensorParallel(rank, engine.tp)):
            yield from _Rank(engine, config, collectives).steps()


def _transports(
    engine: EngineConfig, config: ModelConfig, tp: TensorParallel
) -> Iterator[Collectives]:
    """The ways that sums may take on GPUs; exact ones launch no kernels of ours."""
    if tp.size == 1:
        yield SingleRank()
        return
    policy = policy_for(engine, config)
    yield quantised(absent_gpus(tp), policy, config)
    if not policy.is_exact:
        yield quantised(AbsentRanks(tp), policy, config)


def empty_in_integers(
    weights: Mapping[str, Weight], tied: bool, weight_dtype: str
) -> dict[str, Weight]:
    """Weights that nobody filled, as `loading.load_weights` leaves rounded ones on a GPU."""
    found = dict(weights)
    if tied:
        found[HEAD] = found[EMBEDDING]
    for name, weight in found.items():
        bits = rounded_bits(name, weight_dtype)
        if bits is not None:
            assert isinstance(weight, Tensor), "not rounded yet"
            found[name] = empty_weight(weight.shape, weight.device, bits)
    return found


@dataclass(frozen=True)
class _Load:
    """A step: one-token sequences that are not new, then prompts of these lengths."""

    decodes: int
    prompts: tuple[int, ...]

    def fits(self, tokens: int) -> bool:
        """Whether it has at most so many tokens, and prompts that are no single tokens."""
        return min(self.prompts, default=2) > 1 and self.decodes + sum(self.prompts) <= tokens


class _Rank:
    """One rank's model and state, without memory."""

    def __init__(self, engine: EngineConfig, config: ModelConfig, collectives: Collectives) -> None:
        tp, dtype = collectives.tp, DTYPES[engine.dtype]
        self._engine = engine
        weights: dict[str, Weight] = dict(empty_shard(config, tp, dtype, META))
        if engine.weight_dtype != "auto":
            weights = empty_in_integers(weights, config.tie_embeddings, engine.weight_dtype)
        overlap = overlap_of(engine.overlap, collectives)
        self._model: Model = build_model(config, tp, weights, collectives, overlap)
        self._pages = 0
        if config.attention is not None:
            length = max(engine.max_model_len or DEFAULT_LENGTH, engine.max_step_tokens)
            self._pages = max(FEWEST_PAGES, power_of_two(-(-length // PAGE_SIZE)))
        slots = engine.max_batch_size + 1  # One for the rows that fill up a bucket.
        self._pool = StatePool(
            config, self._model.dims, slots, dtype, META, n_pages=self._pages,
            state_dtype=DTYPES[engine.state_dtype], poison=False,
        )  # fmt: skip

    def steps(self) -> Iterator[Callable[[], object]]:
        """One of every kind that is compiled differently."""
        for size in self._sizes():
            for pages in self._page_buckets():
                yield partial(self._decode, replace(size, pages=pages))
        for shape in self._shapes():
            yield partial(self._run_shape, shape)
        for load in self._loads():
            yield partial(self._run_load, load)

    def _sizes(self) -> list[StepSize]:
        """Of decode steps, without pages."""
        engine = self._engine
        most = min(engine.max_batch_size, LARGEST_BUCKET)
        plain = [StepSize(rows) for rows in sorted({bucket_of(n) for n in range(1, most + 1)})]
        return plain + sizes_with_drafts(engine.max_batch_size, engine.speculate)

    def _page_buckets(self) -> list[int]:
        """KV pages of a sequence in decode steps; 0 for pure SSMs."""
        if not self._pages:
            return [0]
        first, last = FEWEST_PAGES.bit_length() - 1, self._pages.bit_length() - 1
        return [1 << exponent for exponent in range(first, last + 1)]

    def _shapes(self) -> list[StepShape]:
        """Of prompts' graphs. Block sizes are tuned for buckets of rows; single tokens beyond a
        multiple of 16 are as decode steps have them."""
        engine = self._engine
        if self._pages and not reads_lengths(DTYPES[engine.dtype]):
            return []
        # Filled up, a step may have more rows than tokens.
        rows = power_of_two(engine.max_step_tokens, least=FEWEST_ROWS)
        rows = min(rows, most_rows(self._model.config, engine.tp))
        shapes = shapes_for(engine.max_batch_size, rows)
        kinds = {
            (shape.singles, shape.prompts, tuning.bucket(shape.tokens)): shape
            for shape in shapes
            if shape.singles <= MOST_SINGLES
        }
        # With more pages tables are longer, which compiles nothing else.
        return [replace(shape, pages=self._page_buckets()[0]) for shape in kinds.values()]

    def _loads(self) -> Iterator[_Load]:
        """Kernels search among a power of two of prompts; where none is long they are not cut;
        numbers of rows that are multiples of 16, or 1, make kernels of their own."""
        tokens, batch = self._engine.max_step_tokens, self._engine.max_batch_size
        loads = [_Load(0, (16,)), _Load(batch, ())]
        for prompts in sorted(
            {min(1 << exponent, batch) for exponent in range(batch.bit_length() + 1)}
        ):
            others = (2,) * (prompts - 1)
            loads += [_Load(0, (2, *others)), _Load(0, (tokens - sum(others), *others))]
        for decodes in sorted({min(1, batch - 1), min(MOST_SINGLES, batch - 1)} - {0}):
            loads += [_Load(decodes, (15,)), _Load(decodes, (tokens - decodes,))]
        return (load for load in loads if load.fits(tokens))

    def _decode(self, size: StepSize) -> None:
        self._run(Bucket.of(size, META).batch(), size.rows)

    def _run_shape(self, shape: StepShape) -> None:
        self._run(StepInputs(shape, META).batch, shape.sequences)

    def _run_load(self, load: _Load) -> None:
        n = load.decodes + len(load.prompts)
        sequences = [[0]] * load.decodes + [[0] * length for length in load.prompts]
        starts = [1] * load.decodes + [0] * len(load.prompts)
        tables = [list(range(self._pages))] * n if self._pages else None
        self._run(pack(sequences, list(range(n)), starts, tables, META), n)

    @torch.inference_mode()
    def _run(self, batch: PackedBatch, rows: int) -> None:
        """The model's part of a step, which draws from the logits of so many rows."""
        hidden = self._model.forward(batch, self._pool)
        self._model.local_logits(hidden[:rows])
