"""What one step asks of one rank's device: the bytes, operations and kernels of each operator.

The operators are those that `layers/` calls, in that order; `tests/unit/projection` holds their
matrices to the parameters of the plan, `tests/unit/triton/test_triton_projection.py` the kernels to
those that are launched. Symbols as in docs/sharding.md; `item` is bytes per element.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sidewinder.config import AttentionConfig, ModelConfig
from sidewinder.ops.launching import TYPICAL_MULTIPROCESSORS
from sidewinder.ops.projected_scan.parts import MOST_FUSED
from sidewinder.ops.selective_scan import chunks
from sidewinder.sharding.dims import LocalDims

SSD_CHUNK = 64
"""Tokens of a chunk of Mamba-2's scan; its products inside a chunk grow with it. The fewest that
fill matrix units: what the suite counts, too, so that its efficiency (`Calibration.ssd`) fits."""

SCAN_PASSES, SSD_PASSES = 2, 4
"""Kernels of the scans in chunks before the last one."""

DRAW_KERNELS = 17
"""Small kernels of a decode step's graph around the model: tokens and slots out of the buffers that
the host fills; each rank's most likely token, and the best of all ranks'."""


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
    """`count` equal operators of one kernel each, on devices that cut long sequences also several.

    Attributes:
        name: the operator.
        kind: which efficiency its bytes have: "memory", "row", "conv", "scan", "attention", "ssd",
            which is also that of its operations; or "gemm", whose bytes are as "memory".
        count: how many in a step.
        bytes: memory traffic of one.
        flops: of its matrix products.
        special: exponentials and the like.
        special_before: those of a first pass, on devices that cut long sequences into chunks.
        kernels_before: kernels before the last one, on those devices.
        weight_elements: of its matrix, once.
        updates: it scans single tokens.
    """

    name: str
    kind: str
    count: int
    bytes: float
    flops: float = 0.0
    special: float = 0.0
    special_before: float = 0.0
    kernels_before: int = 0
    weight_elements: int = 0
    updates: bool = False


class Counter:
    """Counts one rank's work in one step.

    Args:
        config, dims: the model and this rank's shares.
        step: the rows.
        dtype: of weights and activations.
        state_dtype: of the SSM state.
        fuses: a GPU: it has one kernel for a few single tokens, from x_proj's output on, and draws
            in a decode step's graph.
        apart: some deltas are quantised, so Mamba-2's squares do not travel with them.
    """

    def __init__(
        self,
        config: ModelConfig,
        dims: LocalDims,
        step: Step,
        dtype: torch.dtype,
        state_dtype: torch.dtype,
        fuses: bool,
        apart: bool,
    ) -> None:
        self.config, self.dims, self.step = config, dims, step
        self.item, self.state_item = dtype.itemsize, state_dtype.itemsize
        self.has_graphs = fuses
        self.fuses = fuses and step.is_decode and step.tokens <= MOST_FUSED
        self.apart = apart

    def all(self) -> list[Work]:
        """Every kernel of the step; without `sampled` rows those of the layers alone."""
        config, step = self.config, self.step
        mixer = self.mamba2 if config.family == "mamba2" else self.mamba1
        found = [*self.embedding(), *mixer()]
        if config.use_bias:
            found.append(self.rows("out_proj bias", config.n_layers, 3 * config.d_model))
        if config.attention is not None:
            found += self.block(config.attention)
        found.append(self.norm("final norm", 1))
        if step.sampled:
            found.append(
                self.gemm("lm_head", 1, self.dims.vocab_local, config.d_model, step.sampled)
            )
            # Every rank samples from all logits, in float32: gathered, converted, read again.
            found.append(Work("sampling", "memory", 3, step.sampled * config.vocab_size * 6))
            if step.is_decode and self.has_graphs:
                found.append(Work("draw", "memory", DRAW_KERNELS, 0.0))
        return found

    def embedding(self) -> Iterator[Work]:
        """The lookup, what masks other ranks' ids, and the residual stream's beginning."""
        config, width = self.config, self.config.d_model
        yield self.rows("embedding", 1, 2 * width)
        if self.dims.tp.size > 1:
            yield Work("ids of other ranks", "memory", 5, 16.0 * self.step.tokens)
            yield self.rows("other ranks' rows", 1, 2 * width)
        if config.residual_in_fp32 and self.item < 4:
            yield self.rows("residual in float32", 1, 3 * width)

    def mamba1(self) -> Iterator[Work]:
        """Mixers of Mamba, Falcon-Mamba and Zamba with their norms."""
        config, dims = self.config, self.dims
        layers, width = config.n_layers, dims.d_inner_local
        yield self.norm("norm", layers)
        yield self.gemm("in_proj", layers, 2 * width, config.d_model)
        yield self.convolution(width)
        for piece in dims.head_pieces:
            size = piece.stop - piece.start
            yield self.gemm("x_proj", layers, config.dt_rank + 2 * config.d_state, size)
            if self.fuses:
                yield self.fused_scan(size)
            else:
                yield from self.scan(size)
        yield self.gemm("out_proj", layers, config.d_model, width)

    def scan(self, size: int) -> Iterator[Work]:
        """Norms of dt, B and C, dt_proj, and the scan of `size` channels, each by itself."""
        config, tokens, layers = self.config, self.step.tokens, self.config.n_layers
        low = config.dt_rank + 2 * config.d_state
        if config.mixer_norm_eps is not None:
            yield self.rows("norms of dt, B, C", 3 * layers, 2 * low / 3)
        yield self.gemm("dt_proj", layers, size, config.dt_rank)
        moved = tokens * (4 * size + 2 * config.d_state) * self.item + self.states(size)
        special = float(tokens * size * (config.d_state + 3))
        cut = not self.step.is_decode and self.is_cut(size)
        yield Work(
            "scan", "scan", layers, moved, special=special,
            special_before=float(tokens * size * (config.d_state + 1)) if cut else 0.0,
            kernels_before=SCAN_PASSES if cut else 0, updates=self.step.is_decode,
        )  # fmt: skip

    def is_cut(self, size: int) -> bool:
        """Whether GPUs cut a scan of `size` channels of the step's prompts, all of a length."""
        lengths = (-(-self.step.tokens // self.step.sequences),) * self.step.sequences
        of_card = (lengths, size, TYPICAL_MULTIPROCESSORS)
        return chunks.chunk_of(chunks.candidates(*of_card)[0], *of_card) < lengths[0]

    def fused_scan(self, size: int) -> Work:
        """The same in one kernel. Its bytes are mostly matrices: dt_proj's (which later sequences
        find in the cache) and A, in float32."""
        config, tokens, rank = self.config, self.step.tokens, self.config.dt_rank
        rows = tokens * (3 * size + rank + 2 * config.d_state)
        moved = (size * rank + rows) * self.item + 4 * config.d_state * size + self.states(size)
        return Work(
            "dt_proj and scan", "memory", config.n_layers, moved, 2.0 * tokens * size * rank,
            float(tokens * size * (config.d_state + 3)), weight_elements=size * rank, updates=True,
        )  # fmt: skip

    def states(self, width: int) -> float:
        """Bytes of the sequences' states of `width` channels, read and written."""
        return 2.0 * self.step.sequences * self.config.d_state * width * self.state_item

    def mamba2(self) -> Iterator[Work]:
        """Mixers of Mamba-2 with their norms."""
        config, dims, tokens = self.config, self.dims, self.step.tokens
        layers, width, heads = config.n_layers, dims.d_inner_local, dims.n_heads_local
        groups = dims.n_groups_local * config.d_state
        yield self.norm("norm", layers)
        yield self.gemm("in_proj", layers, 2 * width + 2 * groups + heads, config.d_model)
        yield self.convolution(dims.conv_dim_local)
        moved = tokens * (2 * width + 2 * groups + heads) * self.item + self.states(width)
        if self.step.is_decode:
            yield Work("scan", "scan", layers, moved, updates=True)
        else:
            chunk = min(SSD_CHUNK, tokens)
            flops = 2.0 * tokens * (chunk * (groups + width) + 2 * width * config.d_state)
            special = tokens * heads * (chunk + 3.0)
            yield Work("scan", "ssd", layers, moved, flops, special, kernels_before=SSD_PASSES)
        yield self.rows("gated norm", layers, 3 * width)
        yield self.gemm("out_proj", layers, config.d_model, width)
        if config.gated_norm and config.n_groups == 1 < dims.tp.size:
            yield from self.norm_over_ranks()

    def norm_over_ranks(self) -> Iterator[Work]:
        """What a norm over all ranks costs around `out_proj`'s sum (`layers/gated_output.py`):
        the message of both sums, or the mean of the squares that travel apart, and the scale."""
        layers, width = self.config.n_layers, self.config.d_model
        if self.apart:
            yield Work("mean of squares", "memory", layers, 8.0 * self.step.tokens)
        else:
            yield self.rows("squares join the sum", layers, 2 * width)
        yield self.rows("scale", layers, 2 * width)

    def block(self, attention: AttentionConfig) -> Iterator[Work]:
        """Every call of Zamba's shared block; the delta before it is added in its first norm."""
        config, dims = self.config, self.dims
        calls, d, head_dim = len(attention.layers), config.d_model, attention.head_dim
        heads, kv_heads = dims.n_attention_heads_local, dims.n_kv_heads_local
        yield self.rows("block's input norm", calls, 6 * d)
        yield self.gemm("q", calls, heads * head_dim, 2 * d)
        yield self.gemm("k, v", 2 * calls, kv_heads * head_dim, 2 * d)
        yield self.rows("KV write", calls, 4 * kv_heads * head_dim)
        yield from self.attention(calls, heads * head_dim, kv_heads * head_dim)
        yield self.gemm("o", calls, d, heads * head_dim)
        yield self.rows("norm before the MLP", calls, 2 * d)
        yield self.gemm("gate, up", 2 * calls, dims.d_ff_local, d)
        yield self.rows("activation", calls, 3 * dims.d_ff_local)
        yield self.gemm("down", calls, d, dims.d_ff_local)
        yield self.gemm("linear", calls, d, d)

    def attention(self, calls: int, width: int, kv_width: int) -> Iterator[Work]:
        """Single tokens read their pages in place, all together. A prompt's keys and values are put
        side by side first, and each has a kernel of its own."""
        step = self.step
        read = step.context * 2 * kv_width * self.item
        flops = 4.0 * step.tokens * step.context * width
        if step.is_decode:
            yield Work("attention", "attention", calls, step.sequences * read, flops)
            yield self.rows("attention's splits", calls, 2 * width)
            yield Work("places of keys", "memory", 8, 8.0 * step.sequences * step.context)
            return
        prompts, tokens = step.sequences, step.tokens / step.sequences
        yield Work("places of keys", "memory", 6 * prompts + 1, 8.0 * tokens)
        side_by_side = 2.0 * tokens * kv_width * self.item
        yield Work("keys, values side by side", "memory", 2 * calls * prompts, side_by_side)
        yield Work("attention", "gemm", calls * prompts, read, flops / prompts)
        yield self.rows("join sequences", calls, 2 * width)

    def gemm(self, name: str, count: int, out: int, inner: int, rows: int | None = None) -> Work:
        """`count` products of `rows` rows with an `[out, inner]` matrix."""
        rows = self.step.tokens if rows is None else rows
        moved = (out * inner + rows * (out + inner)) * self.item
        flops = 2.0 * rows * out * inner
        # GPUs have a kernel for one row.
        kind = "row" if rows == 1 and self.has_graphs else "gemm"
        return Work(name, kind, count, moved, flops, weight_elements=out * inner)

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
        return Work("conv", "conv", config.n_layers, moved)
