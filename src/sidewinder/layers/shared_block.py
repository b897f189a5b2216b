"""Zamba's shared block: attention and an MLP of one set of weights, which several layers call."""

from torch import Tensor

from sidewinder.collectives.base import Collectives
from sidewinder.layers.attention import Attention
from sidewinder.layers.mlp import AdaptedMLP, GatedMLP
from sidewinder.layers.rotary import Rotation
from sidewinder.layers.weights import Weights
from sidewinder.model_config import AttentionConfig, MLPConfig
from sidewinder.ops.concat_rms_norm import concat_rms_norm
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.state.batch import Sequences
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv import PagedKV
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex


class SharedBlock:
    """A call of Zamba's shared block: norm, attention, norm, MLP; no residual in between.

    Args:
        config, mlp: sizes of its attention and its MLP.
        norm_eps: of both norms.
        weights: the block's.
        collectives: all ranks.
        invocation: which call it is, of all blocks': where its keys are.
        adapters: what the call adds to projections, where the model has it.
    """

    def __init__(
        self,
        config: AttentionConfig,
        mlp: MLPConfig,
        norm_eps: float,
        weights: Weights,
        collectives: Collectives,
        invocation: int,
        adapters: Weights,
    ) -> None:
        self.norm_eps = norm_eps
        self.invocation = invocation
        self.input_norm = weights["input_norm.weight"]
        self.pre_ff_norm = weights["pre_ff_norm.weight"]
        self.attention = Attention(
            config,
            weights.under("attention"),
            collectives,
            adapters if config.adapter_rank else None,
        )
        parts = mlp.activation, weights.under("mlp"), collectives
        self.mlp = (
            AdaptedMLP(*parts, adapters.under("gate_up")) if mlp.adapter_rank else GatedMLP(*parts)
        )

    def __call__(
        self,
        hidden: Tensor,
        embedded: Tensor,
        kv: PagedKV,
        index: KVIndex | DecodeIndex | PromptIndex,
        seqs: Sequences,
        rotation: Rotation | None = None,
        delta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The block's result, and the residual stream that it saw.

        Args:
            hidden, embedded: `[T, d_model]`, the residual stream and the original embedding.
            kv, index, seqs, rotation: as of `Attention`.
            delta: what is still to be added to the residual stream.
        """
        norm = self.input_norm, self.norm_eps
        if delta is None:
            x = concat_rms_norm(hidden, embedded, *norm)
        else:
            x, hidden = concat_rms_norm(delta, embedded, *norm, hidden)
        x = self.attention(x, kv, self.invocation, index, seqs, rotation)
        return self.mlp(rms_norm(x, self.pre_ff_norm, self.norm_eps), seqs), hidden
