"""Selective scan and causal convolution for training: plain references and C++ kernels.

Symbols, as everywhere in Sidewinder: ``d_inner`` channels, ``N`` states per channel, ``G`` groups
of channels that share ``B`` and ``C``. Time comes before channels: ``[batch, length, d_inner]``.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
# What -ffast-math stands for, without the start-up code that GCC links for it: that makes loading
# the library turn denormal numbers into zeros, for everything else in the process too.
FAST_MATH = (
    "-fno-math-errno", "-ffinite-math-only", "-fno-trapping-math", "-fno-signed-zeros",
    "-fassociative-math", "-freciprocal-math",
)  # fmt: skip
FLAGS = ("-O3", "-march=native", *FAST_MATH, "-funroll-loops", "-std=c++17", "-Wno-psabi")


def compiler() -> str | None:
    """Name of the C++ compiler to use: ``$CXX``, else g++ or clang++ when installed."""
    choices = (os.environ.get("CXX"), "g++", "clang++")
    return next((name for name in choices if name and shutil.which(name)), None)


@cache
def kernels() -> ctypes.CDLL:
    """Build the kernels once per source, compiler and machine, and load them."""
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("training needs a C++ compiler: install g++ or clang++, or set CXX")
    version = subprocess.run([cxx, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(SOURCE.read_bytes() + version + repr((FLAGS, os.uname())).encode())
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sidewinder"
    library = root / f"train-kernels-{key.hexdigest()[:16]}.so"
    if not library.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            built = Path(scratch) / "kernels.so"
            subprocess.run(
                [cxx, *FLAGS, "-shared", "-fPIC", "-o", str(built), str(SOURCE)], check=True
            )
            built.replace(library)  # atomic: two builds at once are harmless
    return ctypes.CDLL(str(library))


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _dense(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32:
        raise ValueError(f"training kernels take float32, got {tensor.dtype}")
    return tensor.contiguous()


def selective_scan_reference(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    """The recurrence, one token at a time, in plain torch (see :func:`selective_scan`)."""
    per_group = u.shape[-1] // B.shape[2]
    B, C = B.repeat_interleave(per_group, 2), C.repeat_interleave(per_group, 2)
    h = u.new_zeros(u.shape[0], u.shape[2], B.shape[-1])
    outputs = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t]
        outputs.append((h * C[:, t]).sum(-1))
    y = torch.stack(outputs, 1) + u * D
    return y if z is None else y * F.silu(z)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        u, dt, A, B, C, D, z = (None if t is None else _dense(t) for t in inputs)
        assert u is not None
        assert A is not None
        assert B is not None
        batch, length, channels = u.shape
        groups, states = B.shape[2:]
        lib = kernels()
        if channels % (groups * lib.lanes()) or states > lib.max_states():
            raise ValueError(
                f"{channels} channels in {groups} groups with {states} states: channels per group "
                f"must be a multiple of {lib.lanes()}, states at most {lib.max_states()}"
            )
        sizes = (batch, length, channels, groups, states, A.shape[-1] == 1 and states > 1)
        ctx.sizes = (ctypes.c_int64 * 6)(*sizes)
        out, chunks = torch.empty_like(u), -(-length // lib.chunk())
        saved = u.new_empty(batch, chunks, channels * states)
        pointers = map(_pointer, (u, dt, A, B, C, D, z, out, saved))
        lib.scan_forward(ctx.sizes, *pointers)
        ctx.save_for_backward(u, dt, A, B, C, D, z, saved)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, saved = ctx.saved_tensors
        grads = [None if t is None else torch.empty_like(t) for t in inputs]
        pointers = map(_pointer, (*inputs, _dense(upstream[0]), saved, *grads))
        kernels().scan_backward(ctx.sizes, *pointers)
        return tuple(grads)


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    """Selective scan with skip and gate, differentiable, from a zero state.

    Args:
        u, dt, z: ``[batch, length, d_inner]``; ``dt`` after softplus; ``z`` is the gate, or None.
        A: ``[d_inner, N]``, negative; or ``[d_inner, 1]`` when a channel's states share a decay.
        B, C: ``[batch, length, G, N]``.
        D: ``[d_inner]``.

    Returns:
        ``[batch, length, d_inner]``.
    """
    result: Tensor = _SelectiveScan.apply(u, dt, A, B, C, D, z)  # type: ignore[no-untyped-call]
    return result


def causal_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Plain torch form of :func:`causal_conv`."""
    channels, _, width = weight.shape
    y = F.conv1d(x.mT, weight, bias, padding=width - 1, groups=channels)[..., : x.shape[1]]
    return F.silu(y.mT)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, weight, bias = map(_dense, inputs)
        taps = weight[:, 0].T.contiguous()
        y = torch.empty_like(x)
        if x.shape[-1] % kernels().lanes():
            raise ValueError(f"{x.shape[-1]} channels: not a multiple of {kernels().lanes()}")
        ctx.sizes = [ctypes.c_int64(n) for n in (*x.shape, taps.shape[0])]
        kernels().conv_forward(*ctx.sizes, *map(_pointer, (x, taps, bias, y)))
        ctx.save_for_backward(x, taps, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        x, taps, bias = ctx.saved_tensors
        grads = [torch.zeros_like(t) for t in (x, taps, bias)]
        pointers = map(_pointer, (x, taps, bias, _dense(upstream[0]), *grads))
        kernels().conv_backward(*ctx.sizes, *pointers)
        return grads[0], grads[1].T[:, None], grads[2]


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Causal depthwise convolution, then SiLU, differentiable.

    Args:
        x: ``[batch, length, channels]``; weight: ``[channels, 1, width]``; bias: ``[channels]``.

    Returns:
        ``[batch, length, channels]``.
    """
    result: Tensor = _CausalConv.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result
