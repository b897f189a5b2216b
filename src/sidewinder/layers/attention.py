"""A hybrid's shared transformer block on one rank: causal attention over paged KV, gated MLP.

Heads and the MLP's inner width are split; `o` and `down` are row-parallel, one sum each.
"""

from torch import Tensor

from sidewinder.collectives.base import Collectives
from sidewinder.config import AttentionConfig
from sidewinder.layers.linear import ColumnParallelLinear, RowParallelLinear
from sidewinder.layers.weights import Weights
from sidewinder.ops.concat_rms_norm import concat_rms_norm
from sidewinder.ops.gated_activation import gated_activation
from sidewinder.ops.paged_attention import paged_attention
from sidewinder.ops.prompt_attention import prompt_attention
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.state.batch import Sequences
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv import PagedKV
from sidewinder.state.kv_index import KVIndex

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
"""What checkpoints call them, and `ops.gated_activation` does."""


class Attention:
    """Causal attention without positions; scale `(head_dim / 2) ** -0.5` (Zamba).

    Args:
        config: heads and their width.
        weights: `q`, `k`, `v` split by key-value head with its queries; `o` by column.
        collectives: all ranks.
    """

    def __init__(self, config: AttentionConfig, weights: Weights, collectives: Collectives) -> None:
        self.head_dim = config.head_dim
        self.scale = (config.head_dim / 2) ** -0.5
        self.q, self.k, self.v = (ColumnParallelLinear(weights.under(name)) for name in "qkv")
        self.o = RowParallelLinear(weights.under("o"), collectives)

    def __call__(
        self,
        x: Tensor,
        kv: PagedKV,
        invocation: int,
        index: KVIndex | DecodeIndex,
        seqs: Sequences,
    ) -> Tensor:
        """`[T, 2 d_model] -> [T, d_model]`; stores the batch's keys and values first."""
        q, k, v = (
            project(x).view(x.shape[0], -1, self.head_dim) for project in (self.q, self.k, self.v)
        )
        kv.write(invocation, index, k, v)
        pages = kv.of(invocation)
        if isinstance(index, DecodeIndex):
            attended = paged_attention(q, *pages, index.read, index.lengths, self.scale)
        else:
            attended = prompt_attention(q, *pages, index, self.scale)
        return self.o(attended.flatten(1), seqs)


class GatedMLP:
    """`down(act(gate(x)) * up(x))`.

    Args:
        activation: its name in the checkpoint.
        weights: `gate`, `up` split by row, `down` by column.
        collectives: all ranks.

    Raises:
        ValueError: for an activation that is not supported; lists those that are.
    """

    def __init__(self, activation: str, weights: Weights, collectives: Collectives) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
        self.activation = ACTIVATIONS[activation]
        self.gate = ColumnParallelLinear(weights.under("gate"))
        self.up = ColumnParallelLinear(weights.under("up"))
        self.down = RowParallelLinear(weights.under("down"), collectives)

    def __call__(self, x: Tensor, seqs: Sequences) -> Tensor:
        return self.down(gated_activation(self.gate(x), self.up(x), self.activation), seqs)


class SharedBlock:
    """Zamba's shared block: norm, attention, norm, MLP; no residual in between.

    Args:
        config: its sizes.
        norm_eps: of both norms.
        weights: the block's.
        collectives: all ranks.
    """

    def __init__(
        self,
        config: AttentionConfig,
        norm_eps: float,
        weights: Weights,
        collectives: Collectives,
    ) -> None:
        self.norm_eps = norm_eps
        self.input_norm = weights["input_norm.weight"]
        self.pre_ff_norm = weights["pre_ff_norm.weight"]
        self.attention = Attention(config, weights.under("attention"), collectives)
        self.mlp = GatedMLP(config.activation, weights.under("mlp"), collectives)

    def __call__(
        self,
        hidden: Tensor,
        embedded: Tensor,
        kv: PagedKV,
        invocation: int,
        index: KVIndex | DecodeIndex,
        seqs: Sequences,
        delta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The block's result, and the residual stream that it saw.

        Args:
            hidden, embedded: `[T, d_model]`, the residual stream and the original embedding.
            kv, invocation, index, seqs: as of `Attention`.
            delta: what is still to be added to the residual stream.
        """
        norm = self.input_norm, self.norm_eps
        if delta is None:
            x = concat_rms_norm(hidden, embedded, *norm)
        else:
            x, hidden = concat_rms_norm(delta, embedded, *norm, hidden)
        x = self.attention(x, kv, invocation, index, seqs)
        return self.mlp(rms_norm(x, self.pre_ff_norm, self.norm_eps), seqs), hidden
