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
from sidewinder.models.base import Index, Model
from sidewinder.ops.launching import slots_at_rest
from sidewinder.ops.linear import linear
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.parallel.group import TensorParallel
from sidewinder.state.batch import Sequences
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
        assert config.mlp is not None, "with an MLP"
        shared = self.weights.under("shared")
        self.block = SharedBlock(config.attention, config.mlp, config.norm_eps, shared, collectives)
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
    @slots_at_rest()
    def run_layers(
        self, embedded: Tensor, seqs: Sequences, pool: StatePool, index: Index | None = None
    ) -> Tensor:
        assert pool.kv is not None, "a hybrid's pool has KV pages"
        assert index is not None, "a hybrid's tokens have places"
        eps, hidden = self.config.norm_eps, embedded
        delta: Pending | None = None
        for number, layer in enumerate(self.layers):
            if layer.invocation is not None and layer.linear is not None:
                added = None if delta is None else delta.wait()
                where = pool.kv, layer.invocation, index, seqs
                seen, hidden = self.block(hidden, embedded, *where, added)
                normed, _ = rms_norm(linear(seen, layer.linear), layer.norm, eps, hidden)
            elif delta is None:
                normed = rms_norm(hidden, layer.norm, eps)
            else:
                normed, hidden = delta.normed(layer.norm, eps, hidden)
            delta = self._delta(number, normed, pool, seqs)
        assert delta is not None, "a model has layers"
        return delta.normed(self.final_norm, eps, hidden)[0]

    def _delta(self, number: int, normed: Tensor, pool: StatePool, seqs: Sequences) -> Pending:
        """What a layer adds: begun if it is quantised, and then decoded, added and normed in one
        pass; else there already."""
        mixer, state = self.layers[number].mixer, pool.layer(number)
        if self.collectives.is_exact(f"layers.{number}.mixer.out_proj"):
            return Pending.done(mixer(normed, state, seqs))
        return mixer.start(normed, state, seqs)
