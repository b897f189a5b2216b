"""What a worker process makes of its `WorkerSetup`: its end of the group, and its runner."""

import torch

from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.distributed import TorchCollectives, c10d
from sidewinder.collectives.shared_memory import SharedMemoryCollectives, open_segment
from sidewinder.collectives.tcp import TcpCollectives
from sidewinder.parallel.cores import use_threads
from sidewinder.parallel.executor import resolve_target
from sidewinder.parallel.gpu_group import gpu_of, join_gpus
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.mesh import open_links
from sidewinder.parallel.protocol import WorkerSetup


def open_collectives(setup: WorkerSetup) -> Collectives:
    """This rank's end of the group."""
    tp = TensorParallel(setup.rank, setup.size)
    if tp.size == 1:
        return SingleRank(tp)
    if setup.transport == "shared memory":
        segment = open_segment(setup.segment, tp.size)
        return SharedMemoryCollectives(tp, segment, setup.timeout_s, setup.cores is not None)
    store = c10d.FileStore(setup.rendezvous, tp.size)
    if setup.transport == "tcp":
        own_cores = setup.cores is not None
        links = open_links(tp, store, "127.0.0.1", setup.timeout_s, own_cores)
        return TcpCollectives(tp, links)
    if setup.device != "cpu":
        return join_gpus(tp, store, gpu_of(setup.device), setup.transport, setup.timeout_s)
    return TorchCollectives(tp, store, torch.device("cpu"), setup.timeout_s)


def build(setup: WorkerSetup, collectives: Collectives) -> object:
    """The runner that `setup.target` names, on this rank's device and threads."""
    use_threads(setup.threads)
    if setup.device != "cpu":
        torch.cuda.set_device(gpu_of(setup.device))
    return resolve_target(setup.target)(setup.engine, setup.model, collectives.tp, collectives)
