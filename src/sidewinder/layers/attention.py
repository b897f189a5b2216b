"""What hybrids have beside mixers, on one rank: causal attention over paged KV, MLPs, and Zamba's
block of both.

Heads and the MLP's inner width are split; `o` and `down` are row-parallel, one sum each.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.layers.adapter import Adapter, adapted
from sidewinder.layers.linear import ColumnParallelLinear, RowParallelLinear
from sidewinder.layers.rotary import Rotation
from sidewinder.layers.weights import Weights
from sidewinder.model_config import AttentionConfig, MLPConfig
from sidewinder.ops.add_rows import add_rows
from sidewinder.ops.concat_rms_norm import concat_rms_norm
from sidewinder.ops.gated_activation import gated_activation
from sidewinder.ops.paged_attention import paged_attention
from sidewinder.ops.prompt_attention import prompt_attention
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.state.batch import Sequences
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv import PagedKV
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
"""What checkpoints call them, and `ops.gated_activation` does."""


class Attention:
    """Causal attention; positions enter by rotation, or not at all.

    Args:
        config: heads, their width, and the scale of their scores.
        weights: `q`, `k`, `v` split by head, key-value heads with their queries; `o` by column.
        collectives: all ranks.
        adapters: what a call of a shared block adds to `q`, `k`, `v`, where the model has it.
    """

    def __init__(
        self,
        config: AttentionConfig,
        weights: Weights,
        collectives: Collectives,
        adapters: Weights | None = None,
    ) -> None:
        self.head_dim = config.head_dim
        self.scale = config.scale
        self.q, self.k, self.v = (
            adapted(ColumnParallelLinear(weights.under(name)), adapters and adapters.under(name))
            for name in "qkv"
        )
        self.o = RowParallelLinear(weights.under("o"), collectives)

    def __call__(
        self,
        x: Tensor,
        kv: PagedKV,
        invocation: int,
        index: KVIndex | DecodeIndex | PromptIndex,
        seqs: Sequences,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """`[T, d_input] -> [T, d_model]`; stores the batch's keys and values first."""
        return self.o(self._attended(x, kv, invocation, index, rotation), seqs)

    def start(
        self,
        x: Tensor,
        kv: PagedKV,
        invocation: int,
        index: KVIndex | DecodeIndex | PromptIndex,
        seqs: Sequences,
        rotation: Rotation | None = None,
    ) -> Pending:
        """The call, with its sum begun."""
        return self.o.start(self._attended(x, kv, invocation, index, rotation), seqs)

    def partial(
        self,
        x: Tensor,
        kv: PagedKV,
        invocation: int,
        index: KVIndex | DecodeIndex | PromptIndex,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """This rank's term of the call's sum, `[T, d_model]`."""
        return self.o.partial(self._attended(x, kv, invocation, index, rotation))

    def _attended(
        self,
        x: Tensor,
        kv: PagedKV,
        invocation: int,
        index: KVIndex | DecodeIndex | PromptIndex,
        rotation: Rotation | None,
    ) -> Tensor:
        """The heads' outputs side by side, `[T, heads_local * head_dim]`."""
        q, k, v = (
            project(x).view(x.shape[0], -1, self.head_dim) for project in (self.q, self.k, self.v)
        )
        if rotation is not None:
            rotation.turn(q, k)
        kv.write(invocation, index, k, v)
        pages = kv.of(invocation)
        if isinstance(index, DecodeIndex):
            attended = paged_attention(q, *pages, index.read, index.lengths, self.scale)
        else:
            attended = prompt_attention(q, *pages, index, self.scale)
        return attended.flatten(1)


class MLP(ABC):
    """`down(inner(x))`.

    Args:
        weights: `up` split by row, `down` by column.
        collectives: all ranks.
    """

    activation: str
    """What `ops.gated_activation` calls it."""

    def __init__(self, weights: Weights, collectives: Collectives) -> None:
        self.up = ColumnParallelLinear(weights.under("up"))
        self.down = RowParallelLinear(weights.under("down"), collectives)

    def __call__(self, x: Tensor, seqs: Sequences) -> Tensor:
        """The layer's delta `[T, d_model]` from the normed `x` `[T, d_model]`."""
        return self.down(self._inner(x), seqs)

    def start(self, x: Tensor, seqs: Sequences) -> Pending:
        """The call, with its sum begun."""
        return self.down.start(self._inner(x), seqs)

    def partial(self, x: Tensor) -> Tensor:
        """This rank's term of the delta, without the bias of `down`."""
        return self.down.partial(self._inner(x))

    @abstractmethod
    def _inner(self, x: Tensor) -> Tensor: ...


class GatedMLP(MLP):
    """`down(act(gate(x)) * up(x))`.

    Args:
        activation: its name in the checkpoint.
        weights: also `gate`, split by row.
        collectives: all ranks.

    Raises:
        ValueError: for an activation that is not supported; lists those that are.
    """

    def __init__(self, activation: str, weights: Weights, collectives: Collectives) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
        super().__init__(weights, collectives)
        self.activation = ACTIVATIONS[activation]
        self.gate = ColumnParallelLinear(weights.under("gate"))

    def _inner(self, x: Tensor) -> Tensor:
        return gated_activation(self.gate(x), self.up(x), self.activation)


class SquaredMLP(MLP):
    """`down(relu(up(x))^2)`: without a gate, or each channel of `up` is its own."""

    activation = "relu"

    def _inner(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        return gated_activation(inner, inner, self.activation)


class AdaptedMLP(GatedMLP):
    """A gated MLP of which a call adds to gate and up.

    Args:
        activation, weights, collectives: as of `GatedMLP`.
        adapter: `A`, and `B` with gate's rows before up's.
    """

    def __init__(
        self, activation: str, weights: Weights, collectives: Collectives, adapter: Weights
    ) -> None:
        super().__init__(activation, weights, collectives)
        self.adapter = Adapter(adapter)

    def _inner(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        for_gate, for_up = self.adapter(x).chunk(2, dim=1)
        return gated_activation(add_rows(gate, for_gate), add_rows(up, for_up), self.activation)


def mlp_of(config: MLPConfig, weights: Weights, collectives: Collectives) -> MLP:
    """The MLP that `config` describes.

    Raises:
        ValueError: for an activation that is not supported; lists those that are.
    """
    if config.gated:
        return GatedMLP(config.activation, weights, collectives)
    if config.activation != "relu2":
        raise ValueError(
            f"activation {config.activation!r} is not supported without a gate; supported: relu2"
        )
    return SquaredMLP(weights, collectives)


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
