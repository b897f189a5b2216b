"""What all models share: embedding, final norm, logits, and the stack of plain mixer layers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.config import ModelConfig
from sidewinder.layers.embedding import VocabParallelEmbedding, VocabParallelLogits
from sidewinder.layers.overlap import PLAIN, Overlap, halves, nothing
from sidewinder.layers.weights import Weight, Weights
from sidewinder.ops.launching import slots_at_rest
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import PackedBatch, Sequences
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv import PagedKV
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.pool import LayerState, StatePool
from sidewinder.state.prompt_index import PromptIndex

Index = KVIndex | DecodeIndex | PromptIndex
"""Where a step's tokens have their keys and values."""


class Mixer(Protocol):
    """The delta `[T, d_model]` that a layer adds, from its normed input and its state."""

    def __call__(self, hidden: Tensor, state: LayerState, seqs: Sequences) -> Tensor: ...

    def start(
        self,
        hidden: Tensor,
        state: LayerState,
        seqs: Sequences,
        midway: Callable[[], None] = nothing,
    ) -> Pending:
        """The call, with the sum of its delta begun; does `midway` about half way there."""
        ...


class Model(ABC):
    """One rank's part of a model.

    Args:
        config: the architecture.
        tp: which rank of how many.
        weights: this rank's, by the names of docs/architecture.md.
        collectives: the group of `tp`.
        overlap: which sums are hidden behind computation; the same on every rank.
    """

    def __init__(
        self,
        config: ModelConfig,
        tp: TensorParallel,
        weights: Mapping[str, Weight],
        collectives: Collectives,
        overlap: Overlap = PLAIN,
    ) -> None:
        assert tp == collectives.tp, "the collectives are another rank's"
        self.config = config
        self.dims = LocalDims.of(config, tp)
        self.collectives = collectives
        self.overlap = overlap if tp.size > 1 else PLAIN
        self.weights = Weights(weights)
        table = self.weights.matrix("embedding.weight")
        # Tied models have a head of their own only where it is rounded.
        head = self.weights.matrix("lm_head.weight") if "lm_head.weight" in self.weights else table
        self.embedding = VocabParallelEmbedding(table, self.dims.vocab, collectives)
        self.logits_of = VocabParallelLogits(
            head, self.dims.vocab_sizes, collectives, config.logits_divisor
        )
        self.final_norm = self.weights["final_norm.weight"]

    @torch.inference_mode()
    def forward(self, batch: PackedBatch, pool: StatePool) -> Tensor:
        """Run the batch from and into the pool's slots.

        Args:
            batch: at least one token; ids within the vocabulary.
            pool: this rank's, made for the same config.

        Returns:
            `[T, d_model]` in the weights' dtype, after the final norm; the same bits on all ranks.
        """
        index = None if pool.kv is None else _places(batch, pool.kv)
        return self.run_layers(self.embed(batch.token_ids), batch.seqs, pool, index)

    def embed(self, token_ids: Tensor) -> Tensor:
        """The residual stream before the first layer, `[T, d_model]`."""
        embedded = self.embedding(token_ids)
        return embedded.float() if self.config.residual_in_fp32 else embedded

    @abstractmethod
    def run_layers(
        self, embedded: Tensor, seqs: Sequences, pool: StatePool, index: Index | None = None
    ) -> Tensor:
        """`forward` from the embedding on.

        Args:
            embedded: what `embed` returned.
            seqs, pool: as of `forward`.
            index: hybrids only; where the batch's tokens have their keys and values.
        """

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits `[rows, vocab_size]` of rows of `forward`'s result, on every rank."""
        return self.logits_of(hidden)

    @torch.inference_mode()
    def local_logits(self, hidden: Tensor) -> Tensor:
        """Logits `[rows, vocab_local]` of this rank's ids, in the activations' dtype."""
        return self.logits_of.local(hidden)


def _places(batch: PackedBatch, kv: PagedKV) -> Index:
    tables = batch.device_tables
    if tables is None:
        return kv.index(batch)
    if batch.seqs.fixed_shape:
        return PromptIndex.of(tables, batch.seqs, kv.page_size)
    return DecodeIndex.of(tables, kv.page_size)


class MixerStack(Model):
    """A model of plain layers: `residual += mixer(norm(residual))`. Families say which mixer."""

    def __init__(
        self,
        config: ModelConfig,
        tp: TensorParallel,
        weights: Mapping[str, Weight],
        collectives: Collectives,
        overlap: Overlap = PLAIN,
    ) -> None:
        super().__init__(config, tp, weights, collectives, overlap)
        layers = [self.weights.under(f"layers.{index}") for index in range(config.n_layers)]
        self.norms = [layer["norm.weight"] for layer in layers]
        self.sites = [f"layers.{index}.mixer.out_proj" for index in range(config.n_layers)]
        self.mixers = self.make_mixers([layer.under("mixer") for layer in layers])

    @abstractmethod
    def make_mixers(self, weights: list[Weights]) -> list[Mixer]:
        """The mixers of all layers, each from its own weights."""

    @torch.inference_mode()
    @slots_at_rest()
    def run_layers(
        self,
        embedded: Tensor,
        seqs: Sequences,
        pool: StatePool,
        index: Index | None = None,  # noqa: ARG002
    ) -> Tensor:
        residual, eps = embedded, self.config.norm_eps
        hidden = rms_norm(residual, self.norms[0], eps)
        assert isinstance(hidden, Tensor), "no residual was given"
        parts = halves(seqs) if self.overlap.out_proj else None
        if parts is not None:
            return self._forward_in_halves(hidden, residual, parts, pool)
        for number, mixer in enumerate(self.mixers):
            state, last = pool.layer(number), number + 1 == len(self.mixers)
            weight = self.final_norm if last else self.norms[number + 1]
            if self.collectives.is_exact(self.sites[number]):
                delta = mixer(hidden, state, seqs)
                hidden, residual = rms_norm(delta, weight, eps, residual)
            else:  # decoded, added and normed in one pass
                pending = mixer.start(hidden, state, seqs)
                hidden, residual = pending.normed(weight, eps, residual)
        return hidden

    def _forward_in_halves(
        self,
        hidden: Tensor,
        residual: Tensor,
        parts: tuple[Sequences, Sequences],
        pool: StatePool,
    ) -> Tensor:
        """All layers, so that a half's sum travels while the other half is computed.

        Args:
            hidden, residual: inputs of the first layer, `[T, d_model]`.
            parts: the rows of each half.
            pool: as of `forward`.
        """
        sizes = [seqs.n_tokens for seqs in parts]
        hiddens, residuals = (list(torch.split(x, sizes)) for x in (hidden, residual))
        pending: list[Pending | None] = [None, None]

        def add(half: int, weight: Tensor) -> None:
            """Wait for the delta of a half, and add and norm it."""
            if (delta := pending[half]) is not None:
                hiddens[half], residuals[half] = delta.normed(
                    weight, self.config.norm_eps, residuals[half]
                )

        def advance(half: int) -> None:
            """Among three and more ranks sums are exchanged twice: begin with the second."""
            if (delta := pending[half]) is not None:
                delta.advance()

        for index, mixer in enumerate(self.mixers):
            for half, seqs in enumerate(parts):
                add(half, self.norms[index])
                pending[half] = mixer.start(
                    hiddens[half], pool.layer(index), seqs, partial(advance, 1 - half)
                )
        for half in range(2):
            add(half, self.final_norm)
        return torch.cat(hiddens)
