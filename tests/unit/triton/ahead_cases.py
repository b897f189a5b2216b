"""Calls of every operator in Triton at the shapes of published models, for `ahead.py`."""

import os
from collections.abc import Callable
from functools import partial

import torch
from ahead_chains import chains, chains_of_one_channel
from ahead_integers import in_int4, in_int8, integers_of
from torch import Tensor

from sidewinder.activations import ACTIVATIONS
from sidewinder.layers.weights import Weight
from sidewinder.model_config import RouterConfig
from sidewinder.ops.add_rows.triton import add_rows
from sidewinder.ops.causal_conv1d.triton import causal_conv1d
from sidewinder.ops.codec.formats import CODECS
from sidewinder.ops.codec.triton import decode, decode_add, decode_rms_norm, encode, reduce
from sidewinder.ops.concat_rms_norm.triton import concat_rms_norm
from sidewinder.ops.experts.matrices import ExpertMatrices
from sidewinder.ops.experts.triton import experts
from sidewinder.ops.gated_activation.triton import gated_activation
from sidewinder.ops.gated_rms_norm.triton import gated_rms_norm
from sidewinder.ops.gated_squares.triton import gated_squares
from sidewinder.ops.launching import EARLY_VARIABLE, slots_at_rest
from sidewinder.ops.linear.triton import FEW_ROWS, TORCH, candidates, linear
from sidewinder.ops.paged_attention.triton import paged_attention
from sidewinder.ops.projected_scan.triton import CANDIDATES as PROJECTED
from sidewinder.ops.projected_scan.triton import projected_scan
from sidewinder.ops.prompt_attention.triton import CANDIDATES as PROMPTS
from sidewinder.ops.prompt_attention.triton import LARGE, SMALL, prompt_attention
from sidewinder.ops.rms_norm.triton import rms_norm
from sidewinder.ops.rotary.triton import rotary
from sidewinder.ops.route.triton import route
from sidewinder.ops.scaled_rows.triton import scaled_rows
from sidewinder.ops.selective_scan.triton import selective_scan
from sidewinder.ops.ssd_scan.triton import ssd_scan
from sidewinder.ops.store_kv.triton import store_kv
from sidewinder.ops.tuning import Config, candidate
from sidewinder.ops.with_scalar.triton import with_scalar
from sidewinder.state.batch import pack
from sidewinder.state.kv_index import KVIndex

Case = tuple[Callable[[], None], list[int]]

SEQS = pack([[0], [0], [0] * 600], [2, 0, 1]).seqs
T = SEQS.n_tokens


def conv(dtype: torch.dtype) -> None:
    weight, bias = torch.empty(4, 5120, dtype=dtype), torch.empty(5120, dtype=dtype)
    causal_conv1d(_rows(5120, dtype), weight, bias, torch.empty(3, 3, 5120, dtype=dtype), SEQS)


def conv_without_bias(dtype: torch.dtype) -> None:
    weight, state = torch.empty(2, 384, dtype=dtype), torch.empty(3, 1, 384, dtype=dtype)
    causal_conv1d(_rows(384, dtype), weight, None, state, SEQS, activation=False)


def scan(dtype: torch.dtype, state_dtype: torch.dtype = torch.float32, gated: bool = True) -> None:
    width, n = 5120, 16
    selective_scan(
        _rows(width, dtype), _rows(width, dtype), torch.empty(n, width), _rows(n, dtype),
        _rows(n, dtype), torch.empty(width), _rows(width, dtype) if gated else None,
        torch.empty(width) if gated else None, torch.empty(3, n, width, dtype=state_dtype), SEQS,
    )  # fmt: skip


def scan_of_rows_eight_apart(dtype: torch.dtype) -> None:
    """Zamba-7B's B and C, a head's: slices of rows of 264."""
    width, n, rank = 3712, 16, 232
    low, x = _rows(rank + 2 * n, dtype), _rows(width, dtype)
    B, C = low[:, rank : rank + n], low[:, rank + n :]
    state, vector = torch.empty(3, n, width), torch.empty(width)
    selective_scan(x, x, torch.empty(n, width), B, C, vector, x, vector, state, SEQS)


def uncut(dtype: torch.dtype) -> None:
    width, n = 5120, 16
    seqs = pack([[0] * 32] * 16, list(range(16))).seqs
    x, b = torch.empty(512, width, dtype=dtype), torch.empty(512, n, dtype=dtype)
    state, vector = torch.empty(16, n, width), torch.empty(width)
    selective_scan(x, x, torch.empty(n, width), b, b, vector, x, vector, state, seqs)


def projected(
    dtype: torch.dtype, eps: float | None = 1e-6, weighted: bool = False, every: bool = False
) -> None:
    seqs, (width, n, rank) = pack([[0], [0]], [2, 0]).seqs, (8192, 16, 256)
    x, low = torch.empty(2, width, dtype=dtype), torch.empty(2, rank + 2 * n, dtype=dtype)
    gain = torch.empty(rank + 2 * n, dtype=dtype) if weighted else None
    for index in range(len(PROJECTED) if every else 1):
        with candidate(index):
            projected_scan(
                x, low, torch.empty(width, rank, dtype=dtype), eps, gain, torch.empty(n, width),
                torch.empty(width), x, torch.empty(width), torch.empty(3, n, width), seqs,
            )  # fmt: skip


def ssd(
    dtype: torch.dtype, state_dtype: torch.dtype = torch.float32, n: int = 128, p: int = 64
) -> None:
    heads = 80
    ssd_scan(
        _rows(heads * p, dtype).view(T, heads, p), _rows(heads, dtype), torch.empty(heads),
        _rows(n, dtype).view(T, 1, n), _rows(n, dtype).view(T, 1, n), torch.empty(heads),
        torch.empty(heads), torch.empty(3, heads, n, p, dtype=state_dtype), SEQS,
        (0.0, float("inf")), torch.zeros(heads, dtype=torch.int64),
    )  # fmt: skip


def norms(dtype: torch.dtype) -> None:
    weight = torch.empty(2560, dtype=dtype)
    rms_norm(_rows(2560, dtype), weight, 1e-5, torch.empty(T, 2560))
    rms_norm(_rows(2560, dtype), weight, 1e-5)
    rms_norm(_rows(7424, dtype), None, 1e-5)
    for norm_before_gate in (False, True):
        x, weight = _rows(5120, dtype), torch.empty(5120, dtype=dtype)
        gated_rms_norm(x, x, weight, 1e-5, 5120, norm_before_gate)
        gated_squares(x, x, torch.empty(5120), norm_before_gate)
    message = with_scalar(_rows(2560, dtype), torch.empty(T, 1), 5120, 1, 2)
    scaled_rows(message[:, :2560], message[:, 2560:], 1e-5)
    scaled_rows(_rows(2560, dtype), torch.empty(T, 1), 1e-5)
    add_rows(_rows(3072, dtype), _rows(3072, dtype))
    hidden, both = _rows(3712, dtype), torch.empty(7424, dtype=dtype)
    concat_rms_norm(hidden, hidden, both, 1e-5)
    concat_rms_norm(hidden, hidden, both, 1e-5, hidden)
    for activation in ACTIVATIONS:
        gated_activation(_rows(14848, dtype), _rows(14848, dtype), activation)


def codecs(dtype: torch.dtype) -> None:
    for codec in CODECS.values():
        messages = encode(_rows(2560, dtype), codec, 2)
        reduce(messages, codec)
        decode(messages[:, None], codec, _rows(2560, dtype))
        residual = torch.empty(T, 2560)
        decode_rms_norm(messages[:, None], codec, dtype, torch.empty(2560), 1e-5, residual)
        decode_add(messages[None], codec, dtype, _rows(2560, dtype))


def attention(dtype: torch.dtype) -> None:
    q, pages = torch.empty(2, 16, 464, dtype=dtype), torch.empty(4096, 16, 464, dtype=dtype)
    read, lengths = torch.zeros(2, 4096, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    paged_attention(q, pages, pages, read, lengths, 0.1)
    store_kv(q, q, pages, pages, lengths)
    rotary(q, q[:, :2], lengths, torch.empty(64))


def prompts(dtype: torch.dtype, configs: tuple[Config, ...]) -> None:
    """A prompt's last 200 tokens of 500, for heads of Zamba-7B and for narrow ones."""
    places = torch.zeros(500, dtype=torch.int64)
    index = KVIndex(places[300:], (places,), (0, 200), n_singles=0)
    for heads, kv_heads, width in ((16, 16, 464), (8, 2, 128)):
        q, pages = torch.empty(200, heads, width, dtype=dtype), torch.empty(512, kv_heads, width)
        for config in configs:
            with candidate(PROMPTS.index(config)):
                prompt_attention(q, pages.to(dtype), pages.to(dtype), index, 0.1)


def experts_of(
    dtype: torch.dtype,
    make: Callable[..., Weight] = torch.empty,
    numbers: tuple[int, ...] = (1, 32, 600),
) -> None:
    """Sizes of granite-4.0-h-tiny, few rows and many; and experts without gates."""
    for n_experts, k, width, d_ff, gated in ((64, 6, 1536, 512, True), (128, 6, 2688, 1856, False)):
        inner, outer = make(d_ff, width, dtype=dtype), make(width, d_ff, dtype=dtype)
        ups = (inner,) * n_experts
        matrices = ExpertMatrices(ups if gated else None, ups, (outer,) * n_experts)
        bias = None if gated else torch.empty(n_experts)
        config = RouterConfig(k, scores="softmax" if gated else "sigmoid", has_bias=not gated)
        for rows in numbers:
            x = torch.empty(rows, width, dtype=dtype)
            chosen, shares = route(x, torch.empty(n_experts, width), bias, config)
            experts(x, matrices, chosen, shares, "silu" if gated else "relu")


def row(dtype: torch.dtype) -> None:
    for outputs, inputs in ((10240, 2560), (192, 5120), (5120, 160)):
        for index, config in enumerate(candidates(outputs, inputs)):
            if config == TORCH:
                continue
            with candidate(index):
                x, weight = torch.empty(1, inputs, dtype=dtype), torch.empty(outputs, inputs)
                linear(x, weight.to(dtype), torch.empty(outputs, dtype=dtype))


def few_rows(dtype: torch.dtype) -> None:
    for index in range(1, len(FEW_ROWS)):
        with candidate(index):
            for rows in (3, 32, 64):
                x, weight = torch.empty(rows, 2560, dtype=dtype), torch.empty(10240, 2560)
                linear(x, weight.to(dtype), torch.empty(10240, dtype=dtype))


def started_early(dtype: torch.dtype) -> None:
    """A decode step's kernels, each of which may start before the one before it has ended."""
    os.environ[EARLY_VARIABLE] = "1"
    try:
        linear(torch.empty(1, 2560, dtype=dtype), torch.empty(5120, 2560, dtype=dtype))
        with candidate(1):
            linear(torch.empty(8, 2560, dtype=dtype), torch.empty(5120, 2560, dtype=dtype))
        for rows in (1, 8):
            linear(torch.empty(rows, 2560, dtype=dtype), in_int8(5120, 2560))
            linear(torch.empty(rows, 2560, dtype=dtype), in_int4(5120, 2560))
        experts_of(dtype)
        with slots_at_rest():
            conv(dtype)
            projected(dtype, None)
            scan(dtype)
            ssd(dtype)
            chains(dtype)
            norms(dtype)
            q = torch.empty(2, 32, 128, dtype=dtype)
            rotary(q, q[:, :8], torch.ones(2, dtype=torch.int64), torch.empty(32))
    finally:
        del os.environ[EARLY_VARIABLE]


def sizes_of_one(dtype: torch.dtype) -> None:
    """Integers that are 1 become constants of the compiled kernel."""
    chains_of_one_channel(dtype)
    seqs, one = pack([[0], [0] * 9], [0, 1]).seqs, torch.empty(10, 1, dtype=dtype)
    causal_conv1d(one, torch.empty(2, 1), torch.empty(1), torch.empty(2, 1, 1), seqs)
    vector = torch.empty(1)
    state = torch.empty(2, 1, 1)
    selective_scan(one, one, torch.empty(1, 1), one, one, vector, one, vector, state, seqs)
    cube, group = one[:, :, None], torch.zeros(1, dtype=torch.int64)
    numbers = (vector, vector, state[:, :, None])
    ssd_scan(cube, one, vector, cube, cube, *numbers, seqs, (0.0, 1.0), group)
    rms_norm(one, None, 1e-5, one)
    concat_rms_norm(one, one, torch.empty(2, dtype=dtype), 1e-5, one)
    gated_activation(one, one, "gelu")
    gated_rms_norm(one, one, vector, 1e-5, 1)
    gated_squares(one, one, vector)
    with_scalar(one, torch.empty(10, 1), 1, 0, 1)
    scaled_rows(one, torch.empty(10, 1), 1.0)
    for codec in (CODECS["int6"], CODECS["int8"]):
        message = encode(one[:1], codec, 1)
        reduce(message, codec)
        decode_add(message[None], codec, dtype, one[:1])
        decode(message[None], codec, one[:1])
    lengths = torch.ones(1, dtype=torch.int64)
    paged_attention(cube[:1], cube, cube, lengths[:, None], lengths, 1.0)
    store_kv(cube[:1], cube[:1], cube, cube, lengths)
    pair = one[:2].view(1, 1, 2)
    rotary(pair, pair, lengths, torch.empty(1))


def _rows(width: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(T, width, dtype=dtype)


def _cases(dtype: torch.dtype, kind: str, capabilities: list[int]) -> dict[str, Case]:
    functions = {
        "conv": conv,
        "scan": scan,
        "ssd": ssd,
        "norms": norms,
        "codecs": codecs,
        "attention": attention,
        "row": row,
        "experts": experts_of,
        "projected": partial(projected, every=True),
        "chains": chains,
        "projected, weighted norms": partial(projected, weighted=True),
    }
    return {f"{name} {kind}": (partial(f, dtype), capabilities) for name, f in functions.items()}


AMPERE, HOPPER = 80, 90
FEW, ALL = (1, 32), (1, 3, 32, 64, 200, 600)
LARGE_PROMPTS = "prompts in large tiles"
"""The one case that takes more shared memory than workstation cards have."""
CASES: dict[str, Case] = {
    **_cases(torch.bfloat16, "bf16", [AMPERE, HOPPER]),
    **_cases(torch.float32, "f32", [AMPERE]),
    "conv without bias": (partial(conv_without_bias, torch.float32), [HOPPER]),
    "scan of rows eight apart": (partial(scan_of_rows_eight_apart, torch.bfloat16), [HOPPER]),
    "scan of short prompts": (partial(uncut, torch.bfloat16), [AMPERE, HOPPER]),
    "scan of bf16 states": (partial(scan, torch.bfloat16, torch.bfloat16, gated=False), [HOPPER]),
    "ssd of odd sizes": (partial(ssd, torch.bfloat16, torch.bfloat16, n=7, p=72), [HOPPER]),
    "chains of bf16 states": (partial(chains, torch.bfloat16, torch.bfloat16), [HOPPER]),
    "prompts": (partial(prompts, torch.bfloat16, SMALL), [HOPPER]),
    "prompts, the default": (partial(prompts, torch.bfloat16, SMALL[:1]), [AMPERE]),
    "prompts of f16": (partial(prompts, torch.float16, SMALL[:1]), [HOPPER]),
    LARGE_PROMPTS: (partial(prompts, torch.bfloat16, LARGE), [HOPPER]),
    "int8 weights": (partial(integers_of, torch.bfloat16, 8), [AMPERE]),
    "every int8 candidate": (partial(integers_of, torch.bfloat16, 8, None, True, ALL), [HOPPER]),
    "int8 weights for f32": (partial(integers_of, torch.float32, 8), [AMPERE]),
    "int8 weights for f16": (partial(integers_of, torch.float16, 8, 128), [HOPPER]),
    "int8 experts": (partial(experts_of, torch.bfloat16, in_int8), [HOPPER]),
    "int8 experts for f32": (partial(experts_of, torch.float32, in_int8, FEW), [AMPERE]),
    "int4 weights": (partial(integers_of, torch.bfloat16, 4), [AMPERE]),
    "every int4 candidate": (partial(integers_of, torch.bfloat16, 4, None, True, ALL), [HOPPER]),
    "int4 weights for f32": (partial(integers_of, torch.float32, 4, None, False, FEW), [AMPERE]),
    "int4 weights for f16": (partial(integers_of, torch.float16, 4, 64, False, FEW), [HOPPER]),
    "int4 experts": (partial(experts_of, torch.bfloat16, in_int4), [HOPPER]),
    "few rows of int4 experts": (partial(experts_of, torch.bfloat16, in_int4, FEW), [AMPERE]),
    "few rows": (partial(few_rows, torch.bfloat16), [AMPERE, HOPPER]),
    "started early": (partial(started_early, torch.bfloat16), [HOPPER]),
    "sizes of one": (partial(sizes_of_one, torch.bfloat16), [HOPPER]),
}
"""By name: what to run, and for which generations to compile its kernels."""
