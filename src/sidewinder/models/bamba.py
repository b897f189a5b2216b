"""Bamba (`BambaForCausalLM`): layers of a Mamba-2 mixer or attention, each followed by an MLP.

residual += mixer(norm(residual)), or attention(norm(residual)) with rotary positions
residual += mlp(norm(residual))

Where deltas have a multiplier m (Granite), the stream here is the model's divided by m: the deltas
enter as they are, the embedding times 1/m, and a norm of it is the model's with eps / m^2.

Deltas of halves of a chunk are not hidden here: attention sees the whole chunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.config import ModelConfig
from sidewinder.layers.attention import Attention, GatedMLP
from sidewinder.layers.mamba2 import Mamba2Mixer
from sidewinder.layers.overlap import PLAIN, Overlap
from sidewinder.layers.rotary import Rotary, Rotation
from sidewinder.layers.weights import Weight
from sidewinder.models.base import Index, Model
from sidewinder.ops.launching import slots_at_rest
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.parallel.group import TensorParallel
from sidewinder.state.batch import Sequences
from sidewinder.state.pool import StatePool


class Part(Protocol):
    """Half of a layer: the delta `[T, d_model]` that it adds, and the same begun."""

    def __call__(self, *inputs: Any, **options: Any) -> Tensor: ...

    def start(self, *inputs: Any, **options: Any) -> Pending: ...


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        norm, pre_ff_norm: before mixer or attention, and before the MLP.
        mixer: what mixes tokens.
        place: which of the mixers it is, or of the attentions: where its state or its keys are.
        mlp: in every layer.
    """

    norm: Tensor
    mixer: Mamba2Mixer | Attention
    place: int
    pre_ff_norm: Tensor
    mlp: GatedMLP


@dataclass(frozen=True)
class Step:
    """What all layers of a step share; `index` and `rotation` where layers attend."""

    seqs: Sequences
    pool: StatePool
    index: Index | None
    rotation: Rotation | None


class Bamba(Model):
    """A stack of layers of two kinds."""

    def __init__(
        self,
        config: ModelConfig,
        tp: TensorParallel,
        weights: Mapping[str, Weight],
        collectives: Collectives,
        overlap: Overlap = PLAIN,
    ) -> None:
        super().__init__(config, tp, weights, collectives, overlap)
        rotary = config.attention.rotary if config.attention else None
        self.rotary = Rotary(rotary, self.final_norm.device) if rotary else None
        self.embedding_scale = config.embedding_multiplier / config.residual_multiplier
        self.eps = config.norm_eps / config.residual_multiplier**2
        self.layers = [self._layer(index) for index in range(config.n_layers)]

    def _layer(self, index: int) -> Layer:
        config, weights = self.config, self.weights.under(f"layers.{index}")
        assert config.mlp is not None, "every layer has an MLP"
        mixer: Mamba2Mixer | Attention
        if index in config.mixer_layers:
            place = config.mixer_layers.index(index)
            mixer = Mamba2Mixer(config, self.dims, weights.under("mixer"), self.collectives)
        else:
            assert config.attention is not None, "a layer without a mixer attends"
            place = config.attention.layers.index(index)
            mixer = Attention(config.attention, weights.under("attention"), self.collectives)
        return Layer(
            norm=weights["norm.weight"],
            mixer=mixer,
            place=place,
            pre_ff_norm=weights["pre_ff_norm.weight"],
            mlp=GatedMLP(config.mlp.activation, weights.under("mlp"), self.collectives),
        )

    def embed(self, token_ids: Tensor) -> Tensor:
        embedded = super().embed(token_ids)
        return embedded if self.embedding_scale == 1 else embedded * self.embedding_scale

    @torch.inference_mode()
    @slots_at_rest()
    def run_layers(
        self, embedded: Tensor, seqs: Sequences, pool: StatePool, index: Index | None = None
    ) -> Tensor:
        rotation = None
        if self.rotary is not None:
            assert index is not None, "tokens have positions where layers attend"
            rotation = self.rotary.at(index.positions)
        step, residual, eps = Step(seqs, pool, index, rotation), embedded, self.eps
        normed = rms_norm(residual, self.layers[0].norm, eps)
        assert isinstance(normed, Tensor), "no residual was given"
        norms_after = [layer.norm for layer in self.layers[1:]] + [self.final_norm]
        for number, layer in enumerate(self.layers):
            delta = self._mixed(number, normed, step)
            normed, residual = delta.normed(layer.pre_ff_norm, eps, residual)
            delta = self._delta(layer.mlp, f"layers.{number}.mlp.down", normed, step.seqs)
            normed, residual = delta.normed(norms_after[number], eps, residual)
        return normed

    def _mixed(self, number: int, normed: Tensor, step: Step) -> Pending:
        """What mixer or attention of a layer adds."""
        layer, name = self.layers[number], f"layers.{number}"
        if isinstance(layer.mixer, Mamba2Mixer):
            state = step.pool.layer(layer.place)
            return self._delta(layer.mixer, f"{name}.mixer.out_proj", normed, state, step.seqs)
        assert step.pool.kv is not None, "the pool of a model that attends has KV pages"
        places = (step.pool.kv, layer.place, step.index)
        return self._delta(
            layer.mixer, f"{name}.attention.o", normed, *places, step.seqs, step.rotation
        )

    def _delta(self, part: Part, site: str, *inputs: Any) -> Pending:
        """What a part of a layer adds: begun if it is quantised, and then decoded, added and normed
        in one pass; else there already."""
        if self.collectives.is_exact(site):
            return Pending.done(part(*inputs))
        return part.start(*inputs)
