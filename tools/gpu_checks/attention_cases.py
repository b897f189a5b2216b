"""Beside mixers: attention of single tokens over pages and of prompts, and the rest of hybrids."""

from collections.abc import Callable, Iterator

import torch

from gpu_checks.case import Case, normal
from gpu_checks.context import Context
from sidewinder.config import ModelConfig
from sidewinder.engine.prompt_graphs import StepInputs
from sidewinder.engine.prompt_shapes import StepShape
from sidewinder.ops.add_rows import add_rows
from sidewinder.ops.concat_rms_norm import concat_rms_norm
from sidewinder.ops.gated_activation import gated_activation
from sidewinder.ops.paged_attention import paged_attention
from sidewinder.ops.prompt_attention import prompt_attention
from sidewinder.ops.rotary import rotary
from sidewinder.ops.store_kv import store_kv
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex
from sidewinder.state.spec import PAGE_SIZE


def attention_case(context: Context, config: ModelConfig) -> Case:
    """Thirty-two sequences' next tokens over 1,024 stored ones each."""
    assert config.attention is not None
    n, length = context.pick(32, 2), context.pick(1024, 32)
    heads, width = config.attention.n_heads, config.attention.head_dim
    kv_heads = config.attention.n_kv_heads

    def make() -> Callable[[], object]:
        k, v = (normal(context, n * length, kv_heads, width) for _ in range(2))
        q = normal(context, n, heads, width)
        read = torch.arange(n * length, device=context.device).view(n, length)
        lengths = torch.full((n,), length, device=context.device)
        return lambda: paged_attention(q, k, v, read, lengths, width**-0.5)

    moved = 2 * n * length * kv_heads * width * context.dtype.itemsize
    return Case("memory", f"paged_attention, decode {n} of {length}", make, moved)


def prompt_attention_case(
    context: Context, config: ModelConfig, name: str, new: int, total: int
) -> Case:
    """The last `new` of a text's `total` tokens. The projection has no constant for it."""
    assert config.attention is not None
    heads, width = config.attention.n_heads, config.attention.head_dim
    kv_heads = config.attention.n_kv_heads

    def make() -> Callable[[], object]:
        q = normal(context, new, heads, width)
        k, v = (normal(context, total, kv_heads, width) for _ in range(2))
        places = torch.arange(total, device=context.device)
        index = KVIndex(places[total - new :], (places,), (0, new), n_singles=0)
        return lambda: prompt_attention(q, k, v, index, (width / 2) ** -0.5)

    moved = 2 * (new * heads + total * kv_heads) * width * context.dtype.itemsize
    pairs = new * (total - (new - 1) / 2)
    flops = 4.0 * pairs * heads * width
    return Case("prompts", f"prompt_attention, {name}", make, moved, flops)


def fixed_attention_case(context: Context, config: ModelConfig) -> Case:
    """A prompt in a step of a fixed shape, with padding, and twice the room that it needs. Only
    Triton's kernels can run it."""
    assert config.attention is not None
    heads, width = config.attention.n_heads, config.attention.head_dim
    kv_heads = config.attention.n_kv_heads
    rows, used, pages = 1024, 1000, 128

    def make() -> Callable[[], object]:
        inputs = StepInputs(StepShape(0, 2, rows, pages), context.device)
        if not context.ahead:
            bounds, tables = [0, used, rows], [*range(pages), *[pages] * pages]
            inputs.fill([0] * rows + [0, 1] + [0, 0] + bounds + tables)
            inputs.spread()
        assert inputs.batch.device_tables is not None, "the shape has pages"
        index = PromptIndex.of(inputs.batch.device_tables, inputs.batch.seqs, PAGE_SIZE)
        q = normal(context, rows, heads, width)
        k, v = (normal(context, (pages + 1) * PAGE_SIZE, kv_heads, width) for _ in range(2))
        return lambda: prompt_attention(q, k, v, index, (width / 2) ** -0.5)

    moved = 2 * used * (heads + kv_heads) * width * context.dtype.itemsize
    flops = 2.0 * used * (used + 1) * heads * width
    return Case("prompts", "prompt_attention, fixed shape", make, moved, flops)


def block_cases(context: Context, config: ModelConfig, name: str, tokens: int) -> Iterator[Case]:
    """The norm of residual stream and embedding, the MLP's gate, what becomes of new keys; and, in
    other hybrids, the sum of what mixer and attention make."""
    assert config.attention is not None
    assert config.mlp is not None
    width, d_ff, item = config.d_model, config.mlp.d_ff, context.dtype.itemsize
    heads, head_dim = config.attention.n_kv_heads, config.attention.head_dim
    query_heads = config.attention.n_heads

    def norm() -> Callable[[], object]:
        delta, hidden, embedded = (normal(context, tokens, width) for _ in range(3))
        gain = normal(context, 2 * width)
        return lambda: concat_rms_norm(delta, embedded, gain, 1e-5, hidden)

    def gate() -> Callable[[], object]:
        opened, up = normal(context, tokens, d_ff), normal(context, tokens, d_ff)
        return lambda: gated_activation(opened, up, "gelu")

    def store() -> Callable[[], object]:
        k, v, keys, values = (normal(context, tokens, heads, head_dim) for _ in range(4))
        places = torch.arange(tokens, device=context.device).flip(0)
        return lambda: store_kv(k, v, keys, values, places)

    def turn() -> Callable[[], object]:
        q, k = (normal(context, tokens, n, head_dim) for n in (query_heads, heads))
        positions = torch.arange(tokens, device=context.device)
        frequencies = torch.ones(head_dim // 2, device=context.device)
        return lambda: rotary(q, k, positions, frequencies)

    def add() -> Callable[[], object]:
        mixed, attended = normal(context, tokens, width), normal(context, tokens, width)
        return lambda: add_rows(mixed, attended)

    turned = 2 * tokens * (query_heads + heads) * head_dim * item
    yield Case("memory", f"rotary, {name}", turn, turned)
    yield Case("memory", f"add_rows, {name}", add, 3 * tokens * width * item)
    yield Case("memory", f"concat_rms_norm, {name}", norm, 6 * tokens * width * item)
    yield Case("memory", f"gated_activation, {name}", gate, 3 * tokens * d_ff * item)
    yield Case("memory", f"store_kv, {name}", store, 4 * tokens * heads * head_dim * item)
