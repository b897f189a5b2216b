"""What is compiled without a GPU, for `test_triton_compile.py`; run as a script, not interpreted.

`compiled_ahead.py DIR` fills the folder, twice, with kernels that tiny engines of all families
launch, and prints one JSON object: facts by name.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sidewinder import cli
from sidewinder.checkpoint.random import empty_shard
from sidewinder.collectives.absent import AbsentRanks
from sidewinder.collectives.base import SingleRank
from sidewinder.config import EngineConfig
from sidewinder.engine.ahead import empty_in_integers, launched_by, target_of
from sidewinder.engine.buckets import Bucket
from sidewinder.engine.decode_sizes import StepSize
from sidewinder.engine.prompt_graphs import StepInputs
from sidewinder.engine.prompt_shapes import StepShape
from sidewinder.layers.overlap import overlap_of
from sidewinder.layers.weights import Weight
from sidewinder.models.registry import build_model
from sidewinder.ops import tuning
from sidewinder.ops.ahead import Specialisation, compile_all, unique
from sidewinder.ops.dispatch import forced
from sidewinder.ops.launching import Launch, Target, recording
from sidewinder.ops.rms_norm.kernels import normalise
from sidewinder.ops.selective_scan.kernels import pass_states
from sidewinder.parallel.group import SINGLE, TensorParallel
from sidewinder.projection.devices import DEVICES
from sidewinder.quantise import BITS
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import TINY, tiny_config

SMALL = {"dtype": "float32", "max_batch_size": 1, "max_step_tokens": 24, "max_model_len": 24}
TUNED = {
    "NVIDIA H100 80GB HBM3|row_product|torch.float32x101x24": {
        "block_o": 16, "block_i": 256, "num_warps": 1,
    }
}  # fmt: skip


def launched(family: str, gpu: str = "h100", **options: Any) -> tuple[Specialisation, ...]:
    engine = EngineConfig(model=family, **(SMALL | options))
    return launched_by(engine, tiny_config(family), DEVICES[gpu])


def compiled_twice(folder: Path) -> list[dict[str, int]]:
    """All that mamba launches, and of other families' kernels the first of each."""
    wanted = list(launched("mamba"))
    for family in TINY:
        seen = {(each.module, each.function) for each in wanted}
        first = {(each.module, each.function): each for each in reversed(launched(family))}
        wanted += [each for kernel, each in first.items() if kernel not in seen]
    times = [Counter(each.found for each in compile_all(wanted, 90, folder, 2)) for _ in range(2)]
    return [{"compiled": seen[False], "found": seen[True]} for seen in times]


def through_the_command_line(folder: Path) -> dict[str, Any]:
    """What `sidewinder compile` says of a model whose kernels are there."""
    said = StringIO()
    with TemporaryDirectory() as model, redirect_stdout(said):
        (Path(model) / "config.json").write_text(json.dumps(TINY["mamba"]))
        options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
        command = ["compile", model, "--gpu", "h100", "--cache", str(folder), "--json", *options]
        assert cli.main(command) == 0
    return dict(json.loads(said.getvalue()))


def step_launches(
    family: str,
    tokens: int,
    target: Target | None = None,
    tp: TensorParallel = SINGLE,
    shape: StepShape | None = None,
    dtype: torch.dtype = torch.float32,
    weight_dtype: str = "auto",
    size: StepSize | None = None,
) -> list[Launch]:
    """A step of one new sequence on the CPU, recorded; or one of a fixed shape or size."""
    config = tiny_config(family)
    weights: dict[str, Weight] = dict(empty_shard(config, tp, dtype, "cpu"))
    if weight_dtype != "auto":
        weights = empty_in_integers(weights, config.tie_embeddings, weight_dtype)
    collectives = SingleRank() if tp == SINGLE else AbsentRanks(tp)
    model = build_model(config, tp, weights, collectives, overlap_of("auto", collectives))
    pool = StatePool(config, LocalDims.of(config, tp), 2, dtype, n_pages=4)
    batch = pack([[1] * tokens], [0], page_tables=[[0]] if config.attention else None)
    if shape is not None:
        inputs = StepInputs(shape, torch.device("cpu"))
        n = shape.sequences
        zeros = [0] * (shape.tokens + 2 * n)
        inputs.fill([*zeros, *shape.longest_bounds, *[0] * (n * shape.pages)])
        inputs.spread()
        batch = inputs.batch
    elif size is not None:
        batch = Bucket.of(size, torch.device("cpu")).batch()
        batch.token_ids.zero_()
    with recording(target) as launches, forced("triton"):
        model.local_logits(model.forward(batch, pool)[-(size.rows if size else 1) :])
    return launches


def forgotten(
    family: str,
    tokens: int,
    tp: TensorParallel = SINGLE,
    shape: StepShape | None = None,
    weight_dtype: str = "auto",
) -> list[str]:
    """Kernels of a step on real tensors that are not among what is compiled. In fixed shapes
    hybrids are in 16 bits."""
    batch_size = 1 if shape is None else shape.sequences
    dtype = torch.bfloat16 if shape is not None and shape.pages else torch.float32
    options = {"max_batch_size": batch_size, "dtype": str(dtype).removeprefix("torch.")}
    options["weight_dtype"] = weight_dtype
    wanted = set(launched(family, tp=tp.size, **options))
    target = target_of(DEVICES["h100"])
    stepped = unique(step_launches(family, tokens, target, tp, shape, dtype, weight_dtype))
    return [each.function for each in stepped if each not in wanted]


def forgotten_with_drafts(family: str, rows: int, chains: int) -> list[str]:
    """Kernels of a decode step with drafts that are not among what is compiled."""
    wanted = set(launched(family, max_batch_size=chains, speculate=8))
    size = StepSize(rows, chains, 16 if tiny_config(family).attention else 0)
    stepped = unique(step_launches(family, 1, target_of(DEVICES["h100"]), size=size))
    assert any(each.function == "update_chains" for each in stepped)
    return [each.function for each in stepped if each not in wanted]


def codecs(**options: Any) -> list[str]:
    """Kernels of quantised sums."""
    wanted = launched("mamba", **options)
    return sorted({each.function for each in wanted if ".codec." in each.module})


def started_early(gpu: str) -> list[str]:
    wanted = launched("mamba", gpu)
    return sorted({each.function for each in wanted if ("launch_pdl", True) in each.constants})


def row_blocks(gpu: str) -> list[int]:
    """Outputs of a program that multiplies one row."""
    wanted = [each for each in launched("mamba", gpu) if each.function == "row_product"]
    return sorted({dict(each.constants)["BLOCK_O"] for each in wanted})


def bits_of(weight_dtype: str) -> dict[str, list[int]]:
    """Of the weights that kernels of products take."""
    found: dict[str, set[int]] = {}
    for each in launched("mamba", weight_dtype=weight_dtype):
        if "BITS" in dict(each.constants):
            found.setdefault(each.function, set()).add(dict(each.constants)["BITS"])
    return {name: sorted(bits) for name, bits in found.items()}


@contextmanager
def tuned() -> Iterator[None]:
    before, tuning.table = tuning.table, lambda: TUNED
    try:
        yield
    finally:
        tuning.table = before


def alike() -> tuple[int, int, int]:
    """How many of two launches, and of five more, are compiled by themselves; and of two that
    differ in a number that Triton was told not to look at."""

    def norm(x: torch.Tensor, n: int) -> Launch:
        return Launch(normalise, (1,), (x, n), {"BLOCK": 64}, {"num_warps": 1})

    x = torch.empty(64, 64, device="meta")
    same = [norm(x, 32), norm(x[1:], 48)]
    others = [norm(x, 33), norm(x, 1), norm(x[:, 1:], 32), norm(x.half(), 32), norm(x, 2**33)]
    unspecialised = [
        Launch(
            pass_states,
            (1,),
            tuple(n if each.name == "first" else x for each in pass_states.params[:12]),
            {},
            {},
        )
        for n in (1, 16)
    ]
    return len(unique(same)), len(unique([*same, *others])), len(unique(unspecialised))


def main() -> None:
    facts = {
        "compiled": compiled_twice(Path(sys.argv[1])),
        "command": through_the_command_line(Path(sys.argv[1])),
        "forgotten": [forgotten(family, tokens) for family in TINY for tokens in (1, 5)],
        "forgotten of uneven ranks": [
            forgotten("mamba", 1, TensorParallel(rank, 5)) for rank in (0, 4)
        ],
        "forgotten of integers": [
            forgotten(family, tokens, weight_dtype=weight_dtype)
            for family in ("mamba", "granite_experts")
            for tokens in (1, 5, 16)
            for weight_dtype in BITS
        ],
        "bits": {weight_dtype: bits_of(weight_dtype) for weight_dtype in BITS},
        "forgotten of fixed shapes": [
            forgotten(family, 1, shape=shape)
            for family in ("mamba", "mamba2")
            for shape in (StepShape(0, 2, 64), StepShape(16, 8, 192))
        ],
        "forgotten of hybrids' fixed shapes": [
            forgotten(family, 1, shape=shape)
            for family in ("zamba", "bamba")
            for shape in (StepShape(0, 2, 64, 16), StepShape(16, 8, 192, 32))
        ],
        "forgotten of drafts": [
            forgotten_with_drafts(family, *size)
            for family in ("mamba", "mamba2", "bamba")
            for size in ((3, 1), (9, 2), (16, 8))
        ],
        "exact": codecs(tp=2),
        "two ranks": codecs(tp=2, all_reduce="int8"),
        "three ranks": codecs(tp=3, all_reduce="int8"),
        "early": {gpu: started_early(gpu) for gpu in ("a100", "h100")},
        "alike": alike(),
    }
    with tuned():
        facts["tuned"] = {gpu: row_blocks(gpu) for gpu in ("a100", "h100")}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
