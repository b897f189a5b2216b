"""Ranks of unlike machines must run one level of kernels; they compare when they meet.

Levels differ in the last bits of a result. Sums over ranks have the same bits everywhere, but a
router of experts runs on every rank, and ranks that choose other experts give half of one and half
of another, which nothing would show. So it is an error, not a warning: one level for all costs
little, as the fast ranks wait for the slowest in every layer.
"""

from typing import Any

import torch

from sidewinder.ops import dispatch, native
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.store import exchange, wait_for

LEVELS = (("portable", "avx2", "avx512", "avx512_bf16"), ("portable", "neon"))
"""Of x86-64 and of Arm; a processor that runs one of a row runs all before it."""


def kernels_here() -> str:
    """What runs this process's operators on CPU tensors: a level, or a backend of another kind."""
    forced = dispatch.forced_backend()
    if forced in ("reference", "torch"):
        return forced
    if dispatch.runs_triton(torch.device("cpu")):
        return "triton"
    return native.isa() or "torch"


def check_same_kernels(tp: TensorParallel, store: Any, own: str, timeout_s: float) -> None:
    """Compare with the other ranks; every rank calls at the same time.

    Args:
        tp: which rank of how many.
        store: a torch store of this group's own.
        own: this rank's `kernels_here()`.
        timeout_s: seconds after which a missing rank is an error.

    Raises:
        ValueError: on every rank, if they differ; it says who runs what, and the remedy.
        RankFailure: if a rank does not come in time.
    """
    everyone = exchange(tp, store, "kernels", own, timeout_s)
    if len(set(everyone)) == 1:
        return
    # The store may end with rank 0, which therefore leaves last.
    store.set(f"kernels-read/{tp.rank}", "")
    if tp.rank == 0:
        wait_for(store, [f"kernels-read/{rank}" for rank in range(tp.size)], timeout_s)
    raise ValueError(_difference(everyone))


def _difference(everyone: list[str]) -> str:
    found = dict.fromkeys(everyone)
    who = {kind: [str(r) for r, own in enumerate(everyone) if own == kind] for kind in found}
    kinds = ", ".join(f"{kind} (rank {', '.join(ranks)})" for kind, ranks in who.items())
    if all(any(kind in levels for levels in LEVELS) for kind in found):
        shared = [levels for levels in LEVELS if found.keys() <= set(levels)]
        common = min(found, key=shared[0].index) if shared else "portable"
        remedy = f"set SIDEWINDER_ISA={common} for every rank"
    else:
        remedy = (
            "set the same SIDEWINDER_OPS for every rank (torch, if the native module is not built "
            "on every machine)"
        )
    return (
        f"the ranks run different kernels: {kinds}; results would differ in the last bits, and "
        f"routers could choose other experts on each rank; {remedy}"
    )
