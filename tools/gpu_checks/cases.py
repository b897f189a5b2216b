"""What is timed: every operator at the sizes of the models, with what it must move or compute."""

from collections.abc import Callable, Iterator

import torch

from gpu_checks.attention_cases import (
    attention_case,
    block_cases,
    fixed_attention_case,
    prompt_attention_case,
)
from gpu_checks.case import Case, normal
from gpu_checks.context import DECODES, HYBRIDS, INTEGER_MODELS, MODELS, PREFILL, Context
from gpu_checks.draft_cases import draft_cases
from gpu_checks.expert_cases import expert_cases
from gpu_checks.linear_cases import integer_cases, linear_cases
from sidewinder.config import ModelConfig
from sidewinder.ops.causal_conv1d import causal_conv1d
from sidewinder.ops.codec import CODECS, decode, decode_rms_norm, encode, reduce
from sidewinder.ops.gated_rms_norm import gated_rms_norm
from sidewinder.ops.gated_squares import gated_squares
from sidewinder.ops.launching import multiprocessors
from sidewinder.ops.projected_scan import projected_scan
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.ops.scaled_rows import scaled_rows
from sidewinder.ops.selective_scan import chunks, selective_scan
from sidewinder.ops.ssd_scan import ssd_scan
from sidewinder.ops.with_scalar import with_scalar
from sidewinder.quantise import BITS
from sidewinder.state.batch import Sequences, pack


def all_cases(context: Context) -> Iterator[tuple[str, Case]]:
    """Every model's, those of int8 and int4 weights, then the codecs', then experts', then hybrids'
    but for their matrices; drafts' last, whose kernels no card has run: a fault of one would be all
    others' too."""
    for model in MODELS:
        for case in cases(context, context.config(model)):
            yield model, case
    for model in INTEGER_MODELS:
        for bits in BITS.values():
            for case in integer_cases(context, context.config(model), bits):
                yield model, case
    for case in codec_cases(context):
        yield "any", case
    for case in expert_cases(context):
        yield "granite-4.0-h-tiny", case
    for model in HYBRIDS:
        for case in operator_cases(context, context.config(model)):
            yield model, case
    for model in (*MODELS, *HYBRIDS):
        config = context.config(model)
        scans = (ssd_case,) if config.is_mamba2 else (scan_case, projected_case)
        for case in draft_cases(context, config, (conv_case, *scans)):
            yield model, case


def cases(context: Context, config: ModelConfig) -> Iterator[Case]:
    """The operators of one family, in prefill and in decode."""
    yield from linear_cases(context, config, context.pick(PREFILL, 24))
    yield from operator_cases(context, config)


def operator_cases(context: Context, config: ModelConfig) -> Iterator[Case]:
    """All but products with matrices."""
    tokens = context.pick(PREFILL, 24)
    shapes = [("prefill", tokens, 1), *((f"decode {n}", n, n) for n in DECODES)]
    for name, n_tokens, n_seqs in shapes:
        seqs = sequences(context, n_tokens, n_seqs)
        yield norm_case(context, config, name, n_tokens)
        yield conv_case(context, config, name, seqs)
        if config.is_mamba2:
            yield ssd_case(context, config, name, seqs)
            yield gated_norm_case(context, config, name, n_tokens)
            yield gated_squares_case(context, config, name, n_tokens)
            yield with_scalar_case(context, config, name, n_tokens)
            yield scaled_rows_case(context, config, name, n_tokens)
        else:
            yield scan_case(context, config, name, seqs)
            if n_tokens == n_seqs == 1:
                yield projected_case(context, config, name, seqs)
        if config.attention is not None:
            yield from block_cases(context, config, name, n_tokens)
    if not config.is_mamba2:
        n = context.pick(16, 4)
        yield scan_case(context, config, f"{n} prompts", sequences(context, tokens, n))
    if config.attention is not None:
        yield attention_case(context, config)
        yield prompt_attention_case(context, config, "prefill", tokens, tokens)
        yield prompt_attention_case(context, config, "last chunk", tokens // 4, tokens)
        if not context.dry_run:
            yield fixed_attention_case(context, config)


def norm_case(context: Context, config: ModelConfig, name: str, tokens: int) -> Case:
    def make() -> Callable[[], object]:
        hidden, gain = normal(context, tokens, config.d_model), normal(context, config.d_model)
        residual = hidden.float()
        return lambda: rms_norm(hidden, gain, 1e-5, residual)

    moved = tokens * config.d_model * (2 * context.dtype.itemsize + 8)
    return Case("memory", f"rms_norm, {name}", make, moved)


def conv_case(context: Context, config: ModelConfig, name: str, seqs: Sequences) -> Case:
    width, taps = config.d_inner, config.d_conv

    def make() -> Callable[[], object]:
        x, weight = normal(context, seqs.n_tokens, width), normal(context, taps, width)
        bias, state = normal(context, width), normal(context, seqs.n_seqs, taps - 1, width)
        return lambda: causal_conv1d(x, weight, bias, state, seqs)

    rows = 2 * seqs.n_tokens + 2 * seqs.n_seqs * (taps - 1)
    return Case("scan", f"causal_conv1d, {name}", make, rows * width * context.dtype.itemsize)


def scan_case(context: Context, config: ModelConfig, name: str, seqs: Sequences) -> Case:
    """Rows of dt_proj's, B's and C's source are as wide as a layer's."""
    tokens, width, n = seqs.n_tokens, config.d_inner, config.d_state

    def make() -> Callable[[], object]:
        x, dt = normal(context, tokens, width), normal(context, tokens, width)
        z = normal(context, tokens, 2 * width)[:, width:]
        _, B, C = normal(context, tokens, config.dt_rank + 2 * n).split([config.dt_rank, n, n], 1)
        A = -torch.rand(n, width, device=context.device)
        ones = torch.ones(width, device=context.device)
        state = torch.randn(seqs.n_seqs, n, width, device=context.device)
        return lambda: selective_scan(x, dt, A, B, C, ones, z, -ones, state, seqs)

    moved = (4 * width + 2 * n) * tokens * context.dtype.itemsize + 8 * seqs.n_seqs * n * width
    each = 2 * n + 4 if is_cut(seqs, width) else n + 3
    return Case(
        "scan", f"selective_scan, {name}", make, moved, special=float(tokens * width * each)
    )


def is_cut(seqs: Sequences, width: int) -> bool:
    """Whether the scan of these sequences takes exponentials twice, with default block sizes."""
    if not seqs.prompt_lengths:
        return False
    of_card = seqs.prompt_lengths, width, multiprocessors()
    return chunks.chunk_of(chunks.candidates(*of_card)[0], *of_card) < max(seqs.prompt_lengths)


def projected_case(context: Context, config: ModelConfig, name: str, seqs: Sequences) -> Case:
    """From x_proj's output on: norms where the model has them, dt_proj, and the scan's step."""
    tokens, width, n, rank = seqs.n_tokens, config.d_inner, config.d_state, config.dt_rank

    def make() -> Callable[[], object]:
        x, z = normal(context, tokens, width), normal(context, tokens, width)
        low, weight = normal(context, tokens, rank + 2 * n), normal(context, width, rank)
        A = -torch.rand(n, width, device=context.device)
        ones = torch.ones(width, device=context.device)
        state = torch.randn(seqs.n_seqs, n, width, device=context.device)
        eps = config.mixer_norm_eps
        gain = normal(context, rank + 2 * n) if config.mixer_norm_weights else None
        return lambda: projected_scan(x, low, weight, eps, gain, A, ones, z, -ones, state, seqs)

    moved = width * (rank + 3 * tokens) * context.dtype.itemsize + 8 * seqs.n_seqs * n * width
    return Case("memory", f"projected_scan, {name}", make, moved + 4.0 * n * width)


def ssd_case(context: Context, config: ModelConfig, name: str, seqs: Sequences) -> Case:
    tokens, heads, n = seqs.n_tokens, config.n_heads, config.d_state
    width, groups = config.d_inner, config.n_groups
    group = torch.zeros(heads, dtype=torch.int64, device=context.device)

    def make() -> Callable[[], object]:
        x = normal(context, tokens, width).view(tokens, heads, -1)
        dt, b_c = normal(context, tokens, heads), normal(context, tokens, 2, groups, n)
        ones = torch.ones(heads, device=context.device)
        state = torch.randn(seqs.n_seqs, heads, n, config.head_dim, device=context.device)
        return lambda: ssd_scan(
            x, dt, -ones, b_c[:, 0], b_c[:, 1], ones, -ones, state, seqs, (0.0, float("inf")), group
        )

    moved = (2 * width + 2 * groups * n + heads) * tokens * context.dtype.itemsize
    moved += 8 * seqs.n_seqs * n * width
    flops = 2.0 * tokens * (64 * (n + width) + 2 * width * n) if tokens > 64 else 0.0
    return Case("ssd", f"ssd_scan, {name}", make, moved, flops)


def gated_norm_case(context: Context, config: ModelConfig, name: str, tokens: int) -> Case:
    width = config.d_inner

    def make() -> Callable[[], object]:
        x, z, gain = (
            normal(context, tokens, width), normal(context, tokens, width), normal(context, width)
        )  # fmt: skip
        return lambda: gated_rms_norm(x, z, gain, 1e-5, width // config.n_groups)

    return Case(
        "memory", f"gated_rms_norm, {name}", make, 3 * tokens * width * context.dtype.itemsize
    )


def gated_squares_case(context: Context, config: ModelConfig, name: str, tokens: int) -> Case:
    """One of two ranks' part of a norm that spans both."""
    width = config.d_inner // 2

    def make() -> Callable[[], object]:
        x, z, gain = (
            normal(context, tokens, width), normal(context, tokens, width),
            normal(context, width).float(),
        )  # fmt: skip
        return lambda: gated_squares(x, z, gain)

    moved = 3 * tokens * width * context.dtype.itemsize
    return Case("memory", f"gated_squares, {name}", make, moved)


def with_scalar_case(context: Context, config: ModelConfig, name: str, tokens: int) -> Case:
    """The first of two ranks' message, which has four columns more than its partial sum."""
    width = config.d_model

    def make() -> Callable[[], object]:
        partial = normal(context, tokens, width)
        squares = torch.rand(tokens, 1, device=context.device)
        return lambda: with_scalar(partial, squares, config.d_inner, 0, 2)

    moved = (2 * width + 4) * tokens * context.dtype.itemsize
    return Case("memory", f"with_scalar, {name}", make, moved)


def scaled_rows_case(context: Context, config: ModelConfig, name: str, tokens: int) -> Case:
    """A layer's delta, out of the sum of two ranks' messages."""
    width = config.d_model

    def make() -> Callable[[], object]:
        total = torch.rand(tokens, width + 4, device=context.device).to(context.dtype)
        return lambda: scaled_rows(total[:, :width], total[:, width:], 1e-5)

    moved = (2 * width + 4) * tokens * context.dtype.itemsize
    return Case("memory", f"scaled_rows, {name}", make, moved)


def codec_cases(context: Context) -> Iterator[Case]:
    """Encode; decode, sum and encode; decode: of a delta that four ranks sum. And at two ranks the
    decode that goes on to the residual and the norm."""
    rows, width = context.pick(2048, 8), context.pick(4096, 160)
    size, item = rows * width, context.dtype.itemsize
    for codec in CODECS.values():
        n_bytes = codec.stripe_bytes(rows, width, 1)

        def make(which: str, codec: object = codec) -> Callable[[], object]:
            x, gain = normal(context, rows, width), normal(context, width)
            message, residual = encode(x, codec), x.float()
            parts = message.expand(4, -1).contiguous()
            runs: dict[str, Callable[[], object]] = {
                "encode": lambda: encode(x, codec),
                "reduce": lambda: reduce(parts, codec),
                "decode": lambda: decode(message[None], codec, x),
                "decode_rms_norm": lambda: decode_rms_norm(
                    parts[:2, None], codec, x.dtype, gain, 1e-5, residual
                ),
            }
            return runs[which]

        for which, moved in (
            ("encode", size * item + n_bytes), ("reduce", 5 * n_bytes),
            ("decode", size * item + n_bytes), ("decode_rms_norm", 2 * n_bytes + size * (item + 8)),
        ):  # fmt: skip
            yield Case(
                "codec", f"{which} {codec.name}", lambda which=which, make=make: make(which), moved
            )


def sequences(context: Context, tokens: int, n_seqs: int) -> Sequences:
    """A packed batch of equal sequences in slots of their own, which hold states to go on from."""
    each = [[0] * (tokens // n_seqs)] * n_seqs
    return pack(each, list(range(n_seqs)), [1] * n_seqs, device=context.device).seqs
