"""Causal attention over paged KV on one rank: heads are split, and `o` is row-parallel, one sum."""

from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.layers.adapter import adapted
from sidewinder.layers.linear import ColumnParallelLinear, RowParallelLinear
from sidewinder.layers.rotary import Rotation
from sidewinder.layers.weights import Weights
from sidewinder.model_config import AttentionConfig
from sidewinder.ops.paged_attention import paged_attention
from sidewinder.ops.prompt_attention import prompt_attention
from sidewinder.state.batch import Sequences
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv import PagedKV
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex


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
