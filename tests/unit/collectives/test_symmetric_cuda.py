"""What of the CUDA side runs without a GPU: telling torch about a group of ours."""

import torch
import torch.distributed
from torch._C._distributed_c10d import _resolve_process_group, _unregister_process_group

from sidewinder.collectives.distributed import TorchCollectives
from sidewinder.collectives.staged import StagedCollectives
from sidewinder.collectives.symmetric_cuda import backend_of, register_group
from sidewinder.testing import run_ranks

CPU = torch.device("cpu")


def test_torch_finds_our_group_by_its_name():
    store = torch.distributed.HashStore()

    def run(tp, _):
        ours = StagedCollectives(TorchCollectives(tp, store, CPU, 20.0))
        kept = register_group(tp, store, backend_of(ours), CPU, "group")
        try:
            group = _resolve_process_group(kept.group_name)
            x = torch.full((3,), float(tp.rank + 1))
            group.allreduce([x]).wait()
            return group.rank(), group.size(), x.tolist()
        finally:
            _unregister_process_group(kept.group_name)
            ours.close()

    # They wait for each other in gloo.
    assert run_ranks(2, run, in_turns=False) == [(rank, 2, [3.0] * 3) for rank in range(2)]
    assert not torch.distributed.is_initialized(), "torch's default group is left alone"
