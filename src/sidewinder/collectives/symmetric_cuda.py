"""Symmetric memory of CUDA devices, by `torch.distributed._symmetric_memory`.

torch maps a buffer of every rank into all of them (over NVLink or PCIe peer access, or CUDA IPC on
one card) and has kernels that sum them. Its interface is private and still moves: all of it that is
used is in this file. Written against torch 2.11 to 2.13; it has run on ranks that share one card
(docs/gpu.md), not on several.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.collectives.peers import Peers
from sidewinder.collectives.symmetric import ONE_SHOT_BYTES, SymmetricCollectives
from sidewinder.parallel.group import TensorParallel

c10d: Any = torch.distributed
cuda: Any = torch.cuda

BUFFER_BYTES = 32 << 20
"""Of each rank, for messages that are gathered: a decode step's always fit."""

DIRECT_BYTES = 44 << 20
"""Of each of two regions for quantised sums: int8 of 8,192 tokens of 4,096 channels fits, with the
stripe that each of four ranks adds."""

OVERLAP_VARIABLE = "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"
"""torch's own switch that lets ranks on one card share memory."""

FUSED_DTYPES = (torch.float32, torch.bfloat16)
ALIGNMENT = 16
"""The fused kernels load so many bytes at once."""

MULTICAST_RANKS = 4
"""From so many ranks on, a sum inside the switch beats reading every peer."""

_names = itertools.count()


class CudaPeers:
    """The buffers of one group.

    Args:
        tp: this rank.
        store: a torch store that all ranks of the group share.
        group: a c10d backend of these ranks (NCCL; gloo where ranks share a card).
        device: this rank's.
        name: of the group, equal on all ranks, unique in the process.
        timeout_s: seconds after which a meeting without a peer is an error.
        direct_bytes: of the regions for quantised sums.

    Raises:
        RuntimeError: if the devices cannot map each other's memory.
    """

    def __init__(
        self,
        tp: TensorParallel,
        store: Any,
        group: Any,
        device: torch.device,
        name: str,
        timeout_s: float,
        direct_bytes: int = DIRECT_BYTES,
    ) -> None:
        cuda.set_device(device)
        self.n_bytes, self.direct_bytes = BUFFER_BYTES, direct_bytes
        self._store, self._group, self._device = store, group, device
        self._timeout_s, self._name = timeout_s, name
        self._registered = register_group(tp, store, group, device, name)
        self._group_name: str = self._registered.group_name
        from torch._C import _distributed_c10d as private

        # torch's own wrappers: `empty` would cut the buffer from a pool, at some offset, and up to
        # torch 2.10 `rendezvous` refuses a group that torch's table of groups does not hold.
        memory: Any = private
        shape = (self.n_bytes + 2 * self.direct_bytes,)
        allocate = memory._SymmetricMemory.empty_strided_p2p
        self._own: Tensor = allocate(shape, (1,), torch.uint8, device)
        self._handle: Any = memory._SymmetricMemory.rendezvous(self._own, self._group_name)
        self.buffers: Sequence[Tensor] = [
            self._handle.get_buffer(rank, shape, torch.uint8) for rank in range(tp.size)
        ]
        own = self.buffers[tp.rank].data_ptr()
        places = [each.data_ptr() - own for each in self.buffers]
        self.places = torch.tensor(places, dtype=torch.int64, device=device)
        self._in_switch = self._handle.multicast_ptr != 0 and tp.size >= MULTICAST_RANKS
        self._stream = cuda.Stream(device)
        self._last: Any = None

    def meet(self) -> None:
        self._handle.barrier(channel=0, timeout_ms=int(1000 * self._timeout_s))

    def fused_sum(self, n: int, dtype: torch.dtype) -> Tensor | None:
        n_bytes = n * dtype.itemsize
        if dtype not in FUSED_DTYPES or n_bytes % ALIGNMENT:
            return None
        part = self._own[:n_bytes].view(dtype)
        operators: Any = torch.ops.symm_mem
        if self._in_switch:
            # Each rank sums a stripe and sends it to all, so all have the same bits. The one-shot
            # operator of the switch would let every rank sum for itself, in any order.
            operators.multimem_all_reduce_(part, "sum", self._group_name)
            copied: Tensor = part.clone()
            return copied
        total: Tensor = operators.one_shot_all_reduce(part, "sum", self._group_name)
        return total

    def beside(self, run: Callable[[], Tensor]) -> Pending:
        self._stream.wait_stream(cuda.current_stream())
        with cuda.stream(self._stream):
            result = run()
            self._last = event = self._stream.record_event()

        # Holding `run` holds what was given: its memory must not serve others before it is read.
        return Pending(lambda: self._collect(event, result, run))

    def _collect(self, event: Any, result: Tensor, _given: object) -> Tensor:
        current = cuda.current_stream()
        current.wait_event(event)
        result.record_stream(current)
        if self._last is event:
            self._last = None
        return result

    def catch_up(self) -> None:
        if self._last is not None:
            cuda.current_stream().wait_event(self._last)
            self._last = None

    def subgroup(self, ranks: Sequence[int], tp: TensorParallel, inner: Collectives) -> Peers:
        name = f"{self._name}/{'.'.join(map(str, ranks))}"
        group = backend_of(inner)
        store = c10d.PrefixStore(name, self._store)
        # Parts of the ranks sum what steers the recurrence, which is never quantised.
        return CudaPeers(tp, store, group, self._device, name, self._timeout_s, direct_bytes=0)

    def close(self) -> None:
        self.buffers = []
        self._handle, self._own, self._registered = None, torch.empty(0), None


def backend_of(collectives: Collectives) -> Any:
    """The c10d backend underneath; raises RuntimeError where there is none."""
    backend = getattr(collectives, "backend", None)
    if backend is None:
        raise RuntimeError(f"{collectives.path} has no process group of torch")
    return backend


def register_group(
    tp: TensorParallel, store: Any, backend: Any, device: torch.device, name: str
) -> Any:
    """Make `backend` known to torch's operators, by the returned group's `group_name`.

    Keep the group as long as the name is needed: torch's table of names, which is all that is
    touched here, does not hold it.
    """
    from torch._C import _distributed_c10d as private

    table: Any = private
    unique = f"{name}-{next(_names)}"
    kinds = c10d.ProcessGroup.BackendType
    on_cpu = type(backend).__name__ == "ProcessGroupGloo"
    kind = kinds.GLOO if on_cpu else kinds.NCCL
    group = c10d.ProcessGroup(c10d.PrefixStore(f"{unique}/group", store), tp.rank, tp.size)
    for each in {torch.device("cpu"), device} if on_cpu else {device}:
        group._register_backend(torch.device(each.type), kind, backend)
    group._set_default_backend(kind)
    group._set_group_name(unique)
    table._register_process_group(unique, group)
    table._SymmetricMemory.set_group_info(
        unique, tp.rank, tp.size, c10d.PrefixStore(f"{unique}/memory", store)
    )
    return group


def with_symmetric_memory(
    inner: Collectives, store: Any, device: torch.device, timeout_s: float, name: str
) -> Collectives:
    """`inner` with small messages through symmetric memory, if all ranks can have it.

    Otherwise `inner`, and a warning that says why. Every rank calls at the same time.
    """
    peers, reason = None, ""
    try:
        peers = CudaPeers(inner.tp, store, backend_of(inner), device, name, timeout_s)
    except Exception as error:  # A private interface: whatever it raises, sums go the other way.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    mine = torch.tensor([int(peers is not None)], device=device)
    if peers is not None and int(inner.all_reduce(mine)) == inner.tp.size:
        return SymmetricCollectives(inner, peers, ONE_SHOT_BYTES)
    if peers is None:
        inner.all_reduce(mine)
        warnings.warn(f"sums go over {inner.path}: no symmetric memory ({reason})", stacklevel=2)
    return inner


def allow_sharing() -> None:
    """Let ranks on one card map each other's memory; before the first buffer is made."""
    os.environ[OVERLAP_VARIABLE] = "1"
