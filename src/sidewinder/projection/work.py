"""What one step asks of one rank's device: the bytes, operations and kernels of each operator.

The operators are those that `layers/` calls, in that order; `tests/unit/projection` holds their
matrices to the parameters of the plan. Symbols as in docs/sharding.md; `item` is bytes per element.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sidewinder.config import AttentionConfig, ModelConfig
from sidewinder.sharding.dims import LocalDims

SSD_CHUNK = 64
"""Tokens of a chunk of Mamba-2's scan; its products inside a chunk grow with it."""


@dataclass(frozen=True)
class Step:
    """One step's rows.

    Attributes:
        tokens: rows of the packed batch.
        sequences: that they belong to; as many as `tokens` in a decode step.
        sampled: rows whose logits are wanted.
        context: mean number of tokens that a row attends to (hybrids).
    """

    tokens: int
    sequences: int
    sampled: int
    context: float = 0.0

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one token."""
        return self.tokens == self.sequences


@dataclass(frozen=True)
class Work:
    """`count` equal kernels.

    Attributes:
        name: the operator.
        kind: which efficiency it has: "gemm", "memory", "scan" or "ssd".
        count: how many in a step.
        bytes: memory traffic of one.
        flops: of its matrix products.
        special: exponentials and the like.
        special_before: those of a first pass, on devices that cut long sequences into chunks.
        weight_elements: of its matrix, once.
    """

    name: str
    kind: str
    count: int
    bytes: float
    flops: float = 0.0
    special: float = 0.0
    special_before: float = 0.0
    weight_elements: int = 0


class Counter:
    """Counts one rank's work in one step.

    Args:
        config, dims: the model and this rank's shares.
        step: the rows.
        dtype: of weights and activations.
        state_dtype: of the SSM state.
    """

    def __init__(
        self,
        config: ModelConfig,
        dims: LocalDims,
        step: Step,
        dtype: torch.dtype,
        state_dtype: torch.dtype,
    ) -> None:
        self.config, self.dims, self.step = config, dims, step
        self.item, self.state_item = dtype.itemsize, state_dtype.itemsize

    def all(self) -> list[Work]:
        """Every kernel of the step."""
        config, step = self.config, self.step
        found = [self.rows("embedding", 1, 2 * config.d_model)]
        mixer = self.mamba2 if config.family == "mamba2" else self.mamba1
        found += mixer()
        if config.attention is not None:
            found += self.block(config.attention)
        found.append(self.norm("final norm", 1))
        head = self.gemm("lm_head", 1, self.dims.vocab_local, config.d_model, step.sampled)
        # Every rank samples from all logits, in float32: gathered, converted, read again.
        sampling = Work("sampling", "memory", 3, step.sampled * config.vocab_size * 6)
        return [*found, head, sampling]

    def mamba1(self) -> Iterator[Work]:
        """Mixers of Mamba, Falcon-Mamba and Zamba with their norms."""
        config, dims, tokens = self.config, self.dims, self.step.tokens
        layers, width = config.n_layers, dims.d_inner_local
        low = config.dt_rank + 2 * config.d_state
        yield self.norm("norm", layers)
        yield self.gemm("in_proj", layers, 2 * width, config.d_model)
        yield self.convolution(width)
        for piece in dims.head_pieces:
            size = piece.stop - piece.start
            yield self.gemm("x_proj", layers, low, size)
            if config.mixer_norm_eps is not None:
                yield self.rows("norms of dt, B, C", 3 * layers, 2 * low / 3)
            yield self.gemm("dt_proj", layers, size, config.dt_rank)
            moved = tokens * (4 * size + 2 * config.d_state) * self.item
            states = 2 * self.step.sequences * config.d_state * size * self.state_item
            special = float(tokens * size * (config.d_state + 3))
            before = 0.0 if self.step.is_decode else float(tokens * size * (config.d_state + 1))
            yield Work(
                "scan", "scan", layers, moved + states, special=special, special_before=before
            )
        if len(dims.head_pieces) > 1:
            yield self.rows("join heads", layers, 2 * width)
        yield self.gemm("out_proj", layers, config.d_model, width)

    def mamba2(self) -> Iterator[Work]:
        """Mixers of Mamba-2 with their norms."""
        config, dims, tokens = self.config, self.dims, self.step.tokens
        layers, width, heads = config.n_layers, dims.d_inner_local, dims.n_heads_local
        groups = dims.n_groups_local * config.d_state
        yield self.norm("norm", layers)
        yield self.gemm("in_proj", layers, 2 * width + 2 * groups + heads, config.d_model)
        yield self.convolution(dims.conv_dim_local)
        moved = tokens * (2 * width + 2 * groups + heads) * self.item
        states = 2 * self.step.sequences * width * config.d_state * self.state_item
        flops = special = 0.0
        if not self.step.is_decode:
            chunk = min(SSD_CHUNK, tokens)
            flops = 2.0 * tokens * (chunk * (groups + width) + 2 * width * config.d_state)
            special = tokens * heads * (chunk + 3.0)
        yield Work("scan", "ssd", layers, moved + states, flops, special)
        yield self.rows("gated norm", layers, 3 * width)
        yield self.gemm("out_proj", layers, config.d_model, width)

    def block(self, attention: AttentionConfig) -> Iterator[Work]:
        """Every call of Zamba's shared block, and the residual that its layers add apart."""
        config, dims, step = self.config, self.dims, self.step
        calls, d, head_dim = len(attention.layers), config.d_model, attention.head_dim
        heads, kv_heads = dims.n_attention_heads_local, dims.n_kv_heads_local
        yield self.rows("residual", config.n_layers, 3 * d)
        yield self.rows("join hidden and embedding", calls, 4 * d)
        yield self.rows("block's input norm", calls, 4 * d)
        yield self.gemm("q", calls, heads * head_dim, 2 * d)
        yield self.gemm("k, v", 2 * calls, kv_heads * head_dim, 2 * d)
        yield self.rows("KV write", 2 * calls, 2 * kv_heads * head_dim)
        read = step.sequences * step.context * 2 * kv_heads * head_dim * self.item
        flops = 4.0 * step.tokens * step.context * heads * head_dim
        yield Work("attention", "gemm", calls, read, flops)
        yield self.gemm("o", calls, d, heads * head_dim)
        yield self.rows("norm before the MLP", calls, 2 * d)
        yield self.gemm("gate, up", 2 * calls, dims.d_ff_local, d)
        yield self.rows("activation", 2 * calls, 2.5 * dims.d_ff_local)
        yield self.gemm("down", calls, d, dims.d_ff_local)
        yield self.gemm("linear", calls, d, d)

    def gemm(self, name: str, count: int, out: int, inner: int, rows: int | None = None) -> Work:
        """`count` products of `rows` rows with an `[out, inner]` matrix."""
        rows = self.step.tokens if rows is None else rows
        moved = (out * inner + rows * (out + inner)) * self.item
        flops = 2.0 * rows * out * inner
        return Work(name, "gemm", count, moved, flops, weight_elements=out * inner)

    def rows(self, name: str, count: int, elements: float) -> Work:
        """An operator that moves `elements` of each row."""
        return Work(name, "memory", count, self.step.tokens * elements * self.item)

    def norm(self, name: str, count: int) -> Work:
        """RMSNorm fused with the residual, which is read and written."""
        residual = 4 if self.config.residual_in_fp32 else self.item
        moved = self.step.tokens * self.config.d_model * 2 * (self.item + residual)
        return Work(name, "memory", count, moved)

    def convolution(self, width: int) -> Work:
        step, config = self.step, self.config
        states = 2 * step.sequences * (config.d_conv - 1) * width
        moved = (2 * step.tokens * width + states) * self.item
        return Work("conv", "scan", config.n_layers, moved)
