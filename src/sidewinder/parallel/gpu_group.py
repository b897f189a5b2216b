"""How ranks on GPUs talk: NCCL, with symmetric memory for small messages where it can be had."""

from typing import Any

import torch

from sidewinder.collectives.base import Collectives
from sidewinder.collectives.distributed import TorchCollectives
from sidewinder.collectives.staged import StagedCollectives
from sidewinder.collectives.symmetric_cuda import allow_sharing, with_symmetric_memory
from sidewinder.parallel.devices import shares_gpus
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.protocol import Transport

GPU_TRANSPORTS = ("symmetric memory", "nccl", "staged")


def gpu_transport(forced: Transport | None, local_size: int, one_machine: bool = True) -> Transport:
    """The fastest transport between GPUs.

    Args:
        forced: "nccl" keeps ranks off symmetric memory, to compare the two.
        local_size: ranks on this machine; more than its GPUs share them, where that is asked for.
        one_machine: whether that is all ranks.
    """
    if shares_gpus(local_size):
        return "staged"
    return "symmetric memory" if one_machine and forced != "nccl" else "nccl"


def join_gpus(
    tp: TensorParallel,
    store: Any,
    device: torch.device,
    transport: Transport,
    timeout_s: float,
    name: str = "sidewinder",
) -> Collectives:
    """This rank's end of a group of GPUs.

    Args:
        tp: which rank of how many.
        store: a torch store that all ranks share.
        device: this rank's.
        transport: of `GPU_TRANSPORTS`: "symmetric memory" has NCCL underneath; "staged" has gloo by
            way of the host, for ranks that share a card.
        timeout_s: seconds after which a missing peer is an error.
        name: of the group, equal on all ranks and unique in the store.

    Raises:
        RankFailure: if a rank does not come in time.
    """
    assert transport in GPU_TRANSPORTS, transport
    if transport == "staged":
        allow_sharing()
        host = TorchCollectives(tp, store, torch.device("cpu"), timeout_s, name=name)
        return with_symmetric_memory(StagedCollectives(host), store, device, timeout_s, name)
    group = TorchCollectives(tp, store, device, timeout_s, name=name)
    if transport == "nccl":
        return group
    return with_symmetric_memory(group, store, device, timeout_s, name)


def gpu_of(device: str) -> torch.device:
    """The GPU that "cuda:<rank>" means on a machine that may have fewer than ranks."""
    wanted = torch.device(device)
    return torch.device("cuda", (wanted.index or 0) % max(1, torch.cuda.device_count()))
