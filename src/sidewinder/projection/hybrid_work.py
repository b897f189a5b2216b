"""What hybrids do beside their mixers: attention over pages, positions, MLPs, experts, blocks."""

from collections.abc import Iterator

from sidewinder.model_config import AttentionConfig, ExpertsConfig
from sidewinder.ops.experts.matrices import FEW_ROWS, MOST_ARRANGED
from sidewinder.projection.work import KernelCounter, Work

ARRANGING = 4
"""Small operators that group rows by the experts they chose, and add their terms up."""


class HybridCounter(KernelCounter):
    """Counts attention, MLPs and experts."""

    def hybrid(self) -> Iterator[Work]:
        """Every call of a shared block, or the attention and the MLP of the layers."""
        attention, mlp = self.config.attention, self.config.mlp
        if attention is not None and attention.shared:
            yield from self.block(attention)
        elif attention is not None:
            calls, d = len(attention.layers), self.config.d_model
            if attention.parallel:
                yield self.rows("mixer and attention", calls, 3 * d)
            else:
                yield self.norm("norm", calls)
            yield from self.projected_attention(attention, d)
        if mlp is not None:
            shared = attention is not None and attention.shared
            name, calls = "norm before the MLP", self.config.n_mlp_calls
            yield (
                self.rows(name, calls, 2 * self.config.d_model)
                if shared
                else self.norm(name, calls)
            )
            yield from self.mlp(calls, self.dims.d_ff_local, mlp.gated, mlp.use_bias)
        if self.config.experts is not None:
            yield from self.experts(self.config.experts)

    def block(self, attention: AttentionConfig) -> Iterator[Work]:
        """Every call of Zamba's shared block up to its MLP, and what joins the residual stream
        after it; the delta before it is added in its first norm."""
        calls, d = len(attention.layers), self.config.d_model
        yield self.rows("block's input norm", calls, 6 * d)
        yield from self.projected_attention(attention, 2 * d)
        yield self.gemm("linear", calls, d, d)

    def projected_attention(self, attention: AttentionConfig, d_input: int) -> Iterator[Work]:
        """Attention with its projections, from `d_input` channels."""
        calls, d, head_dim = len(attention.layers), self.config.d_model, attention.head_dim
        width = self.dims.n_attention_heads_local * head_dim
        kv_width = self.dims.n_kv_heads_local * head_dim
        yield self.gemm("q", calls, width, d_input)
        yield self.gemm("k, v", 2 * calls, kv_width, d_input)
        if rank := attention.adapter_rank:
            yield self.gemm("adapters' A", 3 * calls, rank, d_input)
            for count, outputs in ((1, width), (2, kv_width)):
                yield self.gemm("adapters' B", count * calls, outputs, rank)
                yield self.rows("adapted", count * calls, 3 * outputs)
        if attention.rotary is not None:
            turned = attention.rotary.width / head_dim * (width + kv_width)
            yield self.rows("rotate", calls, 2 * turned)
        yield self.rows("KV write", calls, 4 * kv_width)
        yield from self.attention(calls, width, kv_width)
        yield self.gemm("o", calls, d, width)
        if attention.use_bias and not (attention.parallel and self.config.use_bias):
            yield self.rows("o bias", calls, 3 * d)

    def mlp(self, calls: int, width: int, gated: bool, use_bias: bool) -> Iterator[Work]:
        """Every call of an MLP."""
        d, inputs = self.config.d_model, 2 if gated else 1
        yield self.gemm("gate, up" if gated else "up", inputs * calls, width, d)
        if self.config.mlp is not None and (rank := self.config.mlp.adapter_rank):
            yield self.gemm("adapters' A", calls, rank, d)
            yield self.gemm("adapters' B", calls, 2 * width, rank)
            yield self.rows("adapted", 2 * calls, 3 * width)
        yield self.rows("activation", calls, (inputs + 1) * width)
        yield self.gemm("down", calls, d, width)
        if use_bias:
            yield self.rows("down bias", calls, 3 * d)

    def experts(self, experts: ExpertsConfig) -> Iterator[Work]:
        """Every layer's experts, with their norm, and the MLP beside them.

        A step reads the matrices of the experts that somebody chose, as many as can be expected
        where all are as likely.
        """
        calls, d, tokens = len(experts.layers), self.config.d_model, self.step.tokens
        n, k, width = experts.n_experts, experts.router.n_chosen, self.dims.expert_d_ff.size
        yield self.norm("norm before the MLP", calls)
        widens = self.item < 4 and tokens > FEW_ROWS
        moved = 4.0 * n * (d + tokens) + tokens * d * (4 if widens else self.item)
        yield Work("router", "memory", calls, moved, weight_elements=n * d)
        yield Work("choice of experts", "memory", calls, 4.0 * tokens * (n + 2 * k))
        if widens:
            yield self.rows("router's input in float32", calls, 3 * d)
        model_width = d
        if experts.d_latent:
            d = experts.d_latent
            yield self.gemm("to latent", calls, d, model_width)
        read = n * (1 - (1 - k / n) ** tokens)
        for name, matrices in (("experts in", 2 if experts.gated else 1), ("experts out", 1)):
            weights = read * matrices * width * d * self.stored_item(name)
            moved = weights + tokens * k * (width + d) * self.item
            flops, every = 2.0 * tokens * k * matrices * width * d, n * matrices * width * d
            yield Work(name, "gemm", calls, moved, flops, weight_elements=every)
        if tokens > FEW_ROWS:
            arranging = 2 if tokens * k <= MOST_ARRANGED else ARRANGING
            small = 2 * tokens * k * d * self.item / arranging
            yield Work("rows by expert", "memory", arranging * calls, small)
        if experts.d_latent:
            yield self.gemm("from latent", calls, model_width, d)
        if experts.shared_d_ff:
            shared = self.dims.shared_d_ff.size
            yield from self.mlp(calls, shared, experts.gated, experts.shared_bias)
            yield self.rows("experts and MLP", calls, 3 * model_width)
            if experts.latent_bias:
                yield self.rows("latent bias", calls, 3 * model_width)

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
