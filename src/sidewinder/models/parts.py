"""Models that are a list of parts: mixers, attention, MLPs and experts, each of which adds a delta.

residual += part(norm(residual))

Bamba has two parts a layer: a mixer or attention, and an MLP. Granite and Jamba may have experts
in the MLP's place. In Nemotron-H a layer is one part. In Falcon-H1 mixer and attention stand side
by side: they read one norm, and are one part.

Where deltas have a multiplier m (Granite), the stream here is the model's divided by m: the deltas
enter as they are, the embedding times 1/m, and a norm of it is the model's with eps / m^2.

Deltas of halves of a chunk are not hidden here: attention sees the whole chunk.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.config import ModelConfig
from sidewinder.layers.attention import Attention
from sidewinder.layers.experts import MixtureOfExperts
from sidewinder.layers.mamba1 import Mamba1Mixer
from sidewinder.layers.mamba2 import Mamba2Mixer
from sidewinder.layers.mlp import MLP, mlp_of
from sidewinder.layers.overlap import PLAIN, Overlap
from sidewinder.layers.parallel_block import ParallelBlock
from sidewinder.layers.rotary import Rotary, Rotation
from sidewinder.layers.weights import Weight, Weights
from sidewinder.models.base import Index, Model
from sidewinder.ops.launching import slots_at_rest
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.parallel.group import TensorParallel
from sidewinder.state.batch import Sequences
from sidewinder.state.pool import StatePool


@dataclass(frozen=True)
class Part:
    """What adds one delta to the residual stream: a layer, or half of one.

    Attributes:
        norm: before it.
        module: what it is.
        site: its row-parallel projection, or all its experts, by the name of its parameters.
        place: which of the mixers it is, or of the attentions: where its state or its keys are.
            (Where they stand side by side, every layer has both.)
    """

    norm: Tensor
    module: Mamba1Mixer | Mamba2Mixer | Attention | ParallelBlock | MLP | MixtureOfExperts
    site: str
    place: int = 0


@dataclass(frozen=True)
class Step:
    """What all layers of a step share; `index` and `rotation` where layers attend."""

    seqs: Sequences
    pool: StatePool
    index: Index | None
    rotation: Rotation | None


class PartStack(Model):
    """A model of parts; families say which mixers they have, if not Mamba-2's."""

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
        under = [self.weights.under(f"layers.{index}.mixer") for index in config.mixer_layers]
        self.mixers = self.make_mixers(under)
        self.parts = [part for index in range(config.n_layers) for part in self._layer(index)]

    def _layer(self, index: int) -> Iterator[Part]:
        config, name = self.config, f"layers.{index}"
        weights, norm = self.weights.under(name), self.weights[f"{name}.norm.weight"]
        attention = None
        if index in config.attention_layers and config.attention is not None:
            attention = Attention(config.attention, weights.under("attention"), self.collectives)
        if index in config.mixer_layers:
            place = config.mixer_layers.index(index)
            mixer = self.mixers[place]
            module: Mamba1Mixer | Mamba2Mixer | ParallelBlock = mixer
            if attention is not None:
                assert isinstance(mixer, Mamba2Mixer), "attention stands beside Mamba-2 mixers only"
                module = ParallelBlock(mixer, attention)
            yield Part(norm, module, f"{name}.mixer.out_proj", place)
        elif attention is not None:
            place = config.attention_layers.index(index)
            yield Part(norm, attention, f"{name}.attention.o", place)
        second = norm if config.single_parts else weights["pre_ff_norm.weight"]
        if index in config.mlp_layers and config.mlp is not None:
            mlp = mlp_of(config.mlp, weights.under("mlp"), self.collectives)
            yield Part(second, mlp, f"{name}.mlp.down")
        elif index in config.expert_layers and config.experts is not None:
            experts = MixtureOfExperts(config.experts, weights.under("experts"), self.collectives)
            yield Part(second, experts, f"{name}.experts")

    def make_mixers(self, weights: list[Weights]) -> Sequence[Mamba1Mixer | Mamba2Mixer]:
        """The mixers of all layers that have one, each from its own weights."""
        return [Mamba2Mixer(self.config, self.dims, each, self.collectives) for each in weights]

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
        normed = rms_norm(residual, self.parts[0].norm, eps)
        assert isinstance(normed, Tensor), "no residual was given"
        norms_after = [part.norm for part in self.parts[1:]] + [self.final_norm]
        for part, norm in zip(self.parts, norms_after, strict=True):
            normed, residual = self._delta(part, normed, step).normed(norm, eps, residual)
        return normed

    def _delta(self, part: Part, normed: Tensor, step: Step) -> Pending:
        """What a part adds: begun if it is quantised, and then decoded, added and normed in one
        pass; else there already."""
        module: Any = part.module
        inputs = (normed, *_beside(part, step))
        if self.collectives.is_exact(part.site):
            return Pending.done(module(*inputs))
        begun: Pending = module.start(*inputs)
        return begun


def _beside(part: Part, step: Step) -> tuple[Any, ...]:
    """What the module of a part is called with after the normed stream."""
    if isinstance(part.module, MLP | MixtureOfExperts):
        return (step.seqs,)
    if isinstance(part.module, Mamba1Mixer | Mamba2Mixer):
        return step.pool.layer(part.place), step.seqs
    assert step.pool.kv is not None, "the pool of a model that attends has KV pages"
    if isinstance(part.module, Attention):
        return step.pool.kv, part.place, step.index, step.seqs, step.rotation
    attends = step.pool.kv, part.place, step.index, step.rotation
    return step.pool.layer(part.place), step.seqs, attends
