"""The projection counts the kernels that a step launches."""

from collections import Counter as Counts
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton_cases import DEVICE, DTYPES, launching

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.decode_graphs import DecodeGraphs
from sidewinder.engine.decode_sizes import FEWEST_PAGES, StepSize
from sidewinder.engine.recorders import EagerRecorder, Spare
from sidewinder.layers.gated_output import gated_output
from sidewinder.layers.weights import Weights
from sidewinder.models.registry import build_model
from sidewinder.ops.dispatch import forced
from sidewinder.parallel.group import TensorParallel
from sidewinder.projection.counter import Counter
from sidewinder.projection.work import Step
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import PageTables, pack
from sidewinder.state.pool import StatePool
from sidewinder.state.spec import PAGE_SIZE
from sidewinder.testing import TINY, tiny_config

OPERATORS = {
    ("norm", "final norm", "norms of dt, B, C", "norm before the MLP"): ["rms_norm"],
    ("block's input norm",): ["concat_rms_norm"],
    ("KV write",): ["store_kv"],
    ("rotate",): ["rotary"],
    ("activation", "gate"): ["gated_activation"],
    ("mixer and attention", "experts and MLP", "adapted"): ["add_rows"],
    ("conv",): ["causal_conv1d"],
    ("scan",): ["selective_scan", "ssd_scan"],
    ("dt_proj and scan",): ["projected_scan"],
    ("gated norm",): ["gated_rms_norm", "gated_squares"],
    ("squares join the sum",): ["with_scalar"],
    ("scale",): ["scaled_rows"],
    ("attention", "attention's splits"): ["paged_attention"],
    ("router", "choice of experts"): ["route"],
    ("experts in", "experts out"): ["experts"],
}
"""Work by name, and the operators whose kernels it stands for; matrix products apart."""

CHANGES = {
    "mamba2, one group": {"n_groups": 1},
    "zamba2, adapted attention": {"use_shared_attention_adapter": True},
}

END = {
    "gated norm", "out_proj", "out_proj bias", "squares join the sum", "mean of squares", "scale",
}  # fmt: skip
"""Of a Mamba-2 layer: from the gate on."""


class Kernels(TorchDispatchMode):
    """Lists torch's operators that compute, neither views nor allocations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        if not (name.startswith(("empty", "detach")) or self._is_view(function, args, result)):
            self.names.append(name)
        return result

    @staticmethod
    def _is_view(function, args, result):
        tensors = result if isinstance(result, tuple | list) else [result]
        given = [
            each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)
        ]
        same = all(each.untyped_storage().data_ptr() in given for each in tensors)
        return same and not function._schema.is_mutable


class Alone(Collectives):
    """One rank of several without the others: sums are its own terms, and cost nothing."""

    def __init__(self, tp, exact=True):
        self.tp, self.path, self.exact = tp, "none", exact

    def all_reduce(self, x):
        return x

    def is_exact(self, site):  # noqa: ARG002
        return self.exact

    def subgroup(self, partition):
        return Alone(TensorParallel(0, len(partition[0])))


def launched(run):
    """How many kernels of each operator `run` launches, ours and torch's; ours do not run."""
    torchs = Kernels()
    with torch.inference_mode(), forced("triton"), launching.recording() as launches, torchs:
        run()
    ours = [launch.kernel.fn.__module__.split(".")[-2] for launch in launches]
    return Counts(ours) + Counts(torchs.names)


def work_of(config, tp, step, dtype, apart=False):
    """The counted kernels of the layers in a step on the first rank."""
    dims = LocalDims.of(config, TensorParallel(0, tp))
    return Counter(config, dims, step, dtype, torch.float32, fuses=True, apart=apart).all()


def decode_work(config, tp, n, dtype, apart=False):
    """The same of a decode step of `n` sequences."""
    return work_of(config, tp, Step(n, n, 0, 4.0), dtype, apart)


def decode(config, tp, n, dtype):
    """A decode step of `n` sequences, as something to call."""
    tp = TensorParallel(0, tp)
    model = build_model(config, tp, random_shard(config, tp, dtype, DEVICE), Alone(tp))
    pages = [[i] for i in range(n)] if config.attention else None
    pool = StatePool(config, model.dims, n, dtype, DEVICE, n_pages=n)
    batch = pack([[1]] * n, list(range(n)), [4] * n, pages, DEVICE)
    if pages:
        tables = PageTables(*(torch.tensor(each, device=DEVICE) for each in (pages, [4] * n)))
        batch = replace(batch, starts=(), page_tables=(), device_tables=tables)
    return lambda: model.forward(batch, pool)


def prefill(config, tp, lengths, dtype):
    """A step of whole prompts, as something to call."""
    tp = TensorParallel(0, tp)
    model = build_model(config, tp, random_shard(config, tp, dtype, DEVICE), Alone(tp))
    each = -(-max(lengths) // PAGE_SIZE)
    slots = range(len(lengths))
    pages = [list(range(i * each, (i + 1) * each)) for i in slots] if config.attention else None
    pool = StatePool(config, model.dims, len(lengths), dtype, DEVICE, n_pages=len(lengths) * each)
    batch = pack([[1] * n for n in lengths], list(slots), None, pages, DEVICE)
    return lambda: model.forward(batch, pool)


@DTYPES
@pytest.mark.parametrize("n", [1, 4, 5])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", [*TINY, *CHANGES])
def test_a_decode_step_launches_the_kernels_that_are_counted(family, tp, n, dtype):
    config = tiny_config(family.split(", ")[0], **CHANGES.get(family, {}))
    found = launched(decode(config, tp, n, dtype))
    works = decode_work(config, tp, n, dtype)
    for names, operators in OPERATORS.items():
        counted = sum(work.count for work in works if work.name in names)
        assert sum(found[operator] for operator in operators) == counted, operators
    products = [
        work
        for work in works
        if work.kind in ("gemm", "row") and work.weight_elements and "experts" not in work.name
    ]
    assert found["linear"] == sum(work.count for work in products)
    assert found.total() == sum(work.count for work in works), found


@pytest.mark.parametrize("family", TINY)
def test_a_greedy_graph_launches_the_kernels_that_are_counted(family):
    """From the buffers that the host fills to the tokens that it reads."""
    config, n, dtype = tiny_config(family), 2, torch.bfloat16
    alone = SingleRank()
    model = build_model(config, alone.tp, random_shard(config, alone.tp, dtype, DEVICE), alone)
    pool = StatePool(config, model.dims, n + 1, dtype, DEVICE, n_pages=FEWEST_PAGES)
    graphs = DecodeGraphs(model, pool, EagerRecorder(), Spare(n, FEWEST_PAGES - 1), CallCounter())
    n_pages = FEWEST_PAGES if config.attention else 0
    with torch.inference_mode(), forced("triton"), launching.recording():
        replay = graphs._record(StepSize(n, pages=n_pages), "greedy").recorded.repeat
    found = launched(replay)
    works = work_of(config, 1, Step(n, n, n, 4.0), dtype)
    assert found.total() == sum(work.count * (1 + work.kernels_before) for work in works), found


@DTYPES
@pytest.mark.parametrize("lengths", [[100], [600], [600, 700]], ids=str)
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", [*TINY, *CHANGES])
def test_a_prefill_launches_the_kernels_that_are_counted(family, tp, lengths, dtype):
    config = tiny_config(family.split(", ")[0], **CHANGES.get(family, {}))
    found = launched(prefill(config, tp, lengths, dtype))
    step = Step(sum(lengths), len(lengths), 0, 50.0)
    works = work_of(config, tp, step, dtype)
    kernels = Counts()
    for work in works:
        kernels[work.name] += work.count * (1 + work.kernels_before)
    assert found["selective_scan"] + found["ssd_scan"] == kernels["scan"]
    assert found["scaled_dot_product_attention"] == kernels["attention"]
    assert found.total() == kernels.total(), found


@DTYPES
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_end_of_a_mamba2_layer(dtype, tp, exact):
    """Every kernel from the gate to the delta, where the squares travel with it and where not."""
    config = tiny_config("mamba2", n_groups=1, use_bias=True)
    ranks, seqs = TensorParallel(0, tp), pack([[0], [0]], [0, 1]).seqs
    dims, weights = LocalDims.of(config, ranks), random_shard(config, ranks, dtype, DEVICE)
    mixer = Weights(weights).under("layers.0.mixer")
    output = gated_output(config, dims, mixer, Alone(ranks, exact))
    x = torch.ones(2, dims.d_inner_local, dtype=dtype, device=DEVICE)
    found = launched(lambda: output(x, x, seqs))
    works = [w for w in decode_work(config, tp, 2, dtype, not exact) if w.name in END]
    assert found.total() * config.n_layers == sum(work.count for work in works), found
