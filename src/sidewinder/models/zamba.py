"""Zamba v1 (`ZambaForCausalLM`): Mamba-1 layers, some with a call of one shared transformer block.

At a hybrid layer the block sees the residual stream and the original embedding; its result,
through the layer's own `linear`, is added to the input of the layer's norm only, not to the
residual stream. Deltas of halves of a chunk are not hidden here: the block sees the whole chunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.config import ModelConfig
from sidewinder.layers.attention import SharedBlock
from sidewinder.layers.mamba1 import Mamba1Mixer
from sidewinder.layers.overlap import PLAIN, Overlap
from sidewinder.layers.weights import Weight
from sidewinder.models.base import Model
from sidewinder.ops.launching import slots_at_rest
from sidewinder.ops.linear import linear
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.parallel.group import TensorParallel
from sidewinder.state.batch import PackedBatch, Sequences
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.pool import StatePool


@dataclass(frozen=True)
class Layer:
    """One layer; `invocation` and `linear` only where it calls the shared block."""

    norm: Tensor
    mixer: Mamba1Mixer
    invocation: int | None
    linear: Weight | None


class Zamba(Model):
    """A stack of Mamba-1 mixers with several heads, and one shared block."""

    def __init__(
        self,
        config: ModelConfig,
        tp: TensorParallel,
        weights: Mapping[str, Weight],
        collectives: Collectives,
        overlap: Overlap = PLAIN,
    ) -> None:
        super().__init__(config, tp, weights, collectives, overlap)
        assert config.attention is not None, "a Zamba config has an attention block"
        shared = self.weights.under("shared")
        self.block = SharedBlock(config.attention, config.norm_eps, shared, collectives)
        self.hybrid_layers = config.attention.layers
        self.sharers = collectives.subgroup(self.dims.x_proj_partition)
        self.layers = [self._layer(index) for index in range(config.n_layers)]

    def _layer(self, index: int) -> Layer:
        weights = self.weights.under(f"layers.{index}")
        hybrid = index in self.hybrid_layers
        return Layer(
            norm=weights["norm.weight"],
            mixer=Mamba1Mixer(
                self.config,
                self.dims,
                weights.under("mixer"),
                self.collectives,
                self.sharers,
                self.overlap,
            ),
            invocation=self.hybrid_layers.index(index) if hybrid else None,
            linear=weights.matrix("linear.weight") if hybrid else None,
        )

    @torch.inference_mode()
    def forward(self, batch: PackedBatch, pool: StatePool) -> Tensor:
        assert pool.kv is not None, "a hybrid's pool has KV pages"
        tables = batch.decode_tables
        index = (
            pool.kv.index(batch) if tables is None else DecodeIndex.of(tables, pool.kv.page_size)
        )
        embedded = self.embedding(batch.token_ids)
        with slots_at_rest():
            return self._run_layers(embedded, index, batch.seqs, pool)

    def _run_layers(
        self, embedded: Tensor, index: KVIndex | DecodeIndex, seqs: Sequences, pool: StatePool
    ) -> Tensor:
        """`forward` from the embedding on."""
        assert pool.kv is not None, "a hybrid's pool has KV pages"
        eps = self.config.norm_eps
        hidden, delta = embedded, Pending.done(torch.zeros_like(embedded))
        for number, layer in enumerate(self.layers):
            if layer.invocation is None or layer.linear is None:
                normed, hidden = delta.normed(layer.norm, eps, hidden)
            else:
                hidden = hidden + delta.wait()
                seen = self.block(hidden, embedded, pool.kv, layer.invocation, index, seqs)
                normed, _ = rms_norm(linear(seen, layer.linear), layer.norm, eps, hidden)
            delta = self._delta(number, normed, pool, seqs)
        return delta.normed(self.final_norm, eps, hidden)[0]

    def _delta(self, number: int, normed: Tensor, pool: StatePool, seqs: Sequences) -> Pending:
        """What a layer adds: begun if it is quantised, and then decoded, added and normed in one
        pass; else there already."""
        mixer, state = self.layers[number].mixer, pool.layer(number)
        if self.collectives.is_exact(f"layers.{number}.mixer.out_proj"):
            return Pending.done(mixer(normed, state, seqs))
        return mixer.start(normed, state, seqs)
