"""Types of the extension module (csrc/). Outputs are written; every tensor is on the CPU."""

from torch import Tensor

def set_tensor_type(type: type, exchange: object) -> None:
    """Learn torch's tensor type and its DLPack C exchange table, once."""

def set_isa(name: str) -> None:
    """Choose an instruction-set level; empty chooses the best. ValueError if it cannot run here."""

def isa() -> str: ...
def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next allocation (glibc; nothing elsewhere)."""

def has_packed(bits: int) -> bool:
    """Whether the level in use takes packed weights of 16, 8 or 4 bits."""

def gated_squares(
    x: Tensor, z: Tensor, weight: Tensor, norm_before_gate: bool, u: Tensor, squares: Tensor
) -> None: ...
def with_scalar(
    partial: Tensor, squares: Tensor, divisor: float, rank: int, ranks: int, message: Tensor
) -> None: ...
def scaled_rows(x: Tensor, mean_squares: Tensor, eps: float, y: Tensor) -> None: ...
def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor, lengths: Tensor, scale: float, y: Tensor
) -> None: ...
def rotary(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> None:
    """Writes q and k."""

def linear_packed(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    y: Tensor,
    group_size: int = 32,
    bits: int = 8,
) -> None: ...
def round_int4(x: Tensor, group_size: int, integers: Tensor, scales: Tensor) -> None:
    """Writes integers, int8 `[o, groups * group_size]`, and scales, bfloat16 `[o, groups]`."""

def route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softmax: bool,
    normalised: bool,
    scale: float,
    least_sum: float,
    groups: int,
    groups_chosen: int,
    chosen: Tensor,
    shares: Tensor,
) -> None: ...

class ExpertSet:
    """The matrices of a layer's experts: `(weight, scales or None, group_size, bits)` of each."""

    def __init__(
        self,
        gate: list[tuple[Tensor, Tensor | None, int, int]] | None,
        up: list[tuple[Tensor, Tensor | None, int, int]],
        down: list[tuple[Tensor, Tensor | None, int, int]],
        width: int,
        inner: int,
        packed: bool,
    ) -> None: ...

def experts(
    x: Tensor, matrices: ExpertSet, chosen: Tensor, shares: Tensor, activation: int, y: Tensor
) -> None: ...
def set_threads(n: int) -> None: ...
def threads() -> int: ...
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    sources: Tensor,
    fresh: Tensor,
    activation: bool,
    y: Tensor,
) -> None: ...
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    sources: Tensor,
    fresh: Tensor,
    y: Tensor,
) -> None: ...
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    sources: Tensor,
    fresh: Tensor,
    dt_min: float,
    dt_max: float,
    head_group: Tensor,
    y: Tensor,
) -> None: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
    y: Tensor,
    sum: Tensor | None,
) -> None: ...
def gated_rms_norm(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    y: Tensor,
) -> None: ...
def linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    y: Tensor,
    group_size: int = 32,
    bits: int = 8,
) -> None: ...

class Recording:
    """Calls of native operators and exact sums of one thread, to be made again without Python.

    Memory of all tensors that were given or written while it recorded must stay as it is.
    """

    spoiled_by: str
    """What was called that cannot be repeated; empty if nothing was."""

    def begin(self) -> None:
        """Keep this thread's calls from now on. ValueError if it is recording already."""

    def end(self) -> None: ...
    def spoil(self, why: str) -> None: ...
    def replay(self) -> None:
        """All calls again; ValueError if it is spoiled, RuntimeError if ranks fail to meet."""

    def __len__(self) -> int: ...
