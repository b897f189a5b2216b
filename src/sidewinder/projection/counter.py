"""All kernels of a step.

The operators are those that `layers/` calls, in that order; `tests/unit/projection` holds their
matrices to the parameters of the plan, `tests/unit/triton/test_triton_projection.py` the kernels to
those that are launched.
"""

from collections.abc import Iterator, Sequence

from sidewinder.ops.launching import TYPICAL_MULTIPROCESSORS
from sidewinder.ops.selective_scan import chunks
from sidewinder.projection.hybrid_work import HybridCounter
from sidewinder.projection.work import KEPT, Work
from sidewinder.quantise import MANY_ROWS, SLICE_BYTES

SSD_CHUNK = 64
"""Tokens of a chunk of Mamba-2's scan; its products inside a chunk grow with it. The fewest that
fill matrix units: what the suite counts, too, so that its efficiency (`Calibration.ssd`) fits."""

SCAN_PASSES, SSD_PASSES = 2, 4
"""Kernels of the scans in chunks before the last one."""

DRAW_KERNELS = 17
"""Small kernels of a decode step's graph around the model: tokens and slots out of the buffers that
the host fills; each rank's most likely token, and the best of all ranks'."""


class Counter(HybridCounter):
    """Counts one rank's work in one step."""

    def all(self) -> list[Work]:
        """Every kernel of the step; without `sampled` rows those of the layers alone."""
        config, step = self.config, self.step
        mixer = self.mamba2 if config.is_mamba2 else self.mamba1
        found = [*self.embedding(), *mixer()]
        if config.use_bias:
            found.append(self.rows("out_proj bias", len(config.mixer_layers), 3 * config.d_model))
        found += self.hybrid()
        found.append(self.norm("final norm", 1))
        if step.sampled:
            found.append(
                self.gemm("lm_head", 1, self.dims.vocab_local, config.d_model, step.sampled)
            )
            if config.logits_divisor != 1:
                scaled = 2.0 * step.sampled * self.dims.vocab_local * self.item
                found.append(Work("logits' scale", "memory", 1, scaled))
            # Every rank samples from all logits, in float32: gathered, converted, read again.
            found.append(Work("sampling", "memory", 3, step.sampled * config.vocab_size * 6))
            if step.is_decode and self.has_graphs:
                found.append(Work("draw", "memory", DRAW_KERNELS, 0.0))
        return [*found, *self.widening(found)]

    def widening(self, found: Sequence[Work]) -> Iterator[Work]:
        """What turns rounded matrices into 16 bits before products of many rows, a slice at a time.
        Experts' are widened on the way."""
        kept = (*KEPT, "router", "experts in", "experts out")
        if self.weight_dtype == "auto" or self.step.tokens < MANY_ROWS or self.item > 2:
            return
        for work in found:
            if not work.weight_elements or work.name in kept:
                continue
            if work.name == "lm_head" and self.step.sampled < MANY_ROWS:
                continue
            slices = -(-work.weight_elements * self.item // SLICE_BYTES)
            moved = work.weight_elements * (self.stored_item(work.name) + self.item) / slices
            yield Work("widening", "memory", work.count * slices, moved)

    def embedding(self) -> Iterator[Work]:
        """The lookup, what masks other ranks' ids, and the residual stream's beginning."""
        config, width = self.config, self.config.d_model
        yield self.rows("embedding", 1, 2 * width)
        if config.embedding_multiplier != config.residual_multiplier:
            yield self.rows("embedding's scale", 1, 2 * width)
        if self.dims.tp.size > 1:
            yield Work("ids of other ranks", "memory", 5, 16.0 * self.step.tokens)
            yield self.rows("other ranks' rows", 1, 2 * width)
        if config.residual_in_fp32 and self.item < 4:
            yield self.rows("residual in float32", 1, 3 * width)

    def mamba1(self) -> Iterator[Work]:
        """Mixers of Mamba, Falcon-Mamba and Zamba with their norms."""
        config, dims = self.config, self.dims
        layers, width = len(config.mixer_layers), dims.d_inner_local
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
        config, tokens, layers = self.config, self.step.tokens, len(self.config.mixer_layers)
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
        """Whether GPUs cut a scan of `size` channels of the step's prompts: all of a length, or, of
        a fixed shape, as if one had all rows."""
        prompts = 1 if self.step.fixed_shape else self.step.sequences
        lengths = (-(-self.step.tokens // prompts),) * prompts
        of_card = (lengths, size, TYPICAL_MULTIPROCESSORS)
        return chunks.chunk_of(chunks.candidates(*of_card)[0], *of_card) < lengths[0]

    def fused_scan(self, size: int) -> Work:
        """The same in one kernel. Its bytes are mostly matrices: dt_proj's (which later sequences
        find in the cache) and A, in float32."""
        config, tokens, rank = self.config, self.step.tokens, self.config.dt_rank
        rows = tokens * (3 * size + rank + 2 * config.d_state)
        moved = (size * rank + rows) * self.item + 4 * config.d_state * size + self.states(size)
        layers = len(config.mixer_layers)
        return Work(
            "dt_proj and scan", "memory", layers, moved, 2.0 * tokens * size * rank,
            float(tokens * size * (config.d_state + 3)), weight_elements=size * rank, updates=True,
        )  # fmt: skip

    def states(self, width: int) -> float:
        """Bytes of the sequences' states of `width` channels, read and written."""
        return 2.0 * self.step.sequences * self.config.d_state * width * self.state_item

    def mamba2(self) -> Iterator[Work]:
        """Mixers of Mamba-2 with their norms."""
        config, dims, tokens = self.config, self.dims, self.step.tokens
        layers, width, heads = len(config.mixer_layers), dims.d_inner_local, dims.n_heads_local
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
        yield self.rows("gated norm" if config.gated_norm else "gate", layers, 3 * width)
        yield self.gemm("out_proj", layers, config.d_model, width)
        if config.gated_norm and config.n_groups == 1 < dims.tp.size and not config.is_parallel:
            yield from self.norm_over_ranks()

    def norm_over_ranks(self) -> Iterator[Work]:
        """What a norm over all ranks costs around `out_proj`'s sum (`layers/gated_output.py`):
        the message of both sums, or the mean of the squares that travel apart, and the scale."""
        layers, width = len(self.config.mixer_layers), self.config.d_model
        if self.apart:
            yield Work("mean of squares", "memory", layers, 8.0 * self.step.tokens)
        else:
            yield self.rows("squares join the sum", layers, 2 * width)
        yield self.rows("scale", layers, 2 * width)
