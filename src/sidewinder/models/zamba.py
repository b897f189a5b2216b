"""Zamba (`ZambaForCausalLM`): SSM layers, some with a call of a shared transformer block.

Here, v1: Mamba-1 mixers with several heads, and one block.

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
from sidewinder.layers.mamba1 import Mamba1Mixer
from sidewinder.layers.overlap import PLAIN, Overlap
from sidewinder.layers.rotary import Rotary
from sidewinder.layers.shared_block import SharedBlock
from sidewinder.layers.weights import Weight, Weights
from sidewinder.models.base import Index, Mixer, Model
from sidewinder.ops.launching import slots_at_rest
from sidewinder.ops.linear import linear
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.parallel.group import TensorParallel
from sidewinder.state.batch import Sequences
from sidewinder.state.pool import StatePool


@dataclass(frozen=True)
class BlockCall:
    """What precedes the mixer of a hybrid layer: a call of a shared block, and its way back."""

    block: SharedBlock
    linear: Weight


class Zamba(Model):
    """A stack of mixers, and the calls of shared blocks beside some of them."""

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
        layers = [self.weights.under(f"layers.{index}") for index in range(config.n_layers)]
        self.norms = [layer["norm.weight"] for layer in layers]
        self.mixers = self.make_mixers([layer.under("mixer") for layer in layers])
        self.calls = {
            layer: self._call(block, layer)
            for block, callers in config.attention.blocks.items()
            for layer in callers
        }
        rotary = config.attention.rotary
        self.rotary = Rotary(rotary, self.final_norm.device) if rotary else None

    def make_mixers(self, weights: list[Weights]) -> list[Mixer]:
        """The mixers of all layers, each from its own weights."""
        sharers = self.collectives.subgroup(self.dims.x_proj_partition)
        return [
            Mamba1Mixer(self.config, self.dims, each, self.collectives, sharers, self.overlap)
            for each in weights
        ]

    def _call(self, name: str, layer: int) -> BlockCall:
        config, own = self.config, self.weights.under(f"layers.{layer}")
        assert config.attention is not None, "a Zamba config has an attention block"
        assert config.mlp is not None, "with an MLP"
        block = SharedBlock(
            config.attention,
            config.mlp,
            config.norm_eps,
            self.weights.under(name),
            self.collectives,
            config.attention.layers.index(layer),
            own.under("adapter"),
        )
        return BlockCall(block, own.matrix("linear.weight"))

    @torch.inference_mode()
    @slots_at_rest()
    def run_layers(
        self, embedded: Tensor, seqs: Sequences, pool: StatePool, index: Index | None = None
    ) -> Tensor:
        assert pool.kv is not None, "a hybrid's pool has KV pages"
        assert index is not None, "a hybrid's tokens have places"
        rotation = None if self.rotary is None else self.rotary.at(index.positions)
        eps, hidden = self.config.norm_eps, embedded
        delta: Pending | None = None
        for number, norm in enumerate(self.norms):
            if (call := self.calls.get(number)) is not None:
                added = None if delta is None else delta.wait()
                where = pool.kv, index, seqs, rotation
                seen, hidden = call.block(hidden, embedded, *where, added)
                normed, _ = rms_norm(linear(seen, call.linear), norm, eps, hidden)
            elif delta is None:
                normed = rms_norm(hidden, norm, eps)
            else:
                normed, hidden = delta.normed(norm, eps, hidden)
            delta = self._delta(number, normed, pool, seqs)
        assert delta is not None, "a model has layers"
        return delta.normed(self.final_norm, eps, hidden)[0]

    def _delta(self, number: int, normed: Tensor, pool: StatePool, seqs: Sequences) -> Pending:
        """What a layer adds: begun if it is quantised, and then decoded, added and normed in one
        pass; else there already."""
        mixer, state = self.mixers[number], pool.layer(number)
        if self.collectives.is_exact(f"layers.{number}.mixer.out_proj"):
            return Pending.done(mixer(normed, state, seqs))
        return mixer.start(normed, state, seqs)
