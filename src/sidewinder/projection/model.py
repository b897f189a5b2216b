"""TTFT, TPOT and throughput of a load, from the work, the sums and what they cost."""

from dataclasses import dataclass, field, replace

import torch

from sidewinder.collectives.quantised.policy import PhaseCodecs
from sidewinder.config import ModelConfig
from sidewinder.engine.prompt_shapes import StepShape, most_rows
from sidewinder.parallel.group import TensorParallel
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.counter import Counter
from sidewinder.projection.devices import Device
from sidewinder.projection.links import Link
from sidewinder.projection.sums import EXACT, SumTime, Wire, sum_times
from sidewinder.projection.work import Step, Work
from sidewinder.sharding.dims import LocalDims

MOST = 10**12
"""Of anything that a load counts."""


@dataclass(frozen=True)
class Load:
    """Equal requests that arrive together.

    Attributes:
        batch, prompt, output: requests; tokens of each prompt; tokens generated for each.
        max_step_tokens: most tokens in a prefill step.
    """

    batch: int = 1
    prompt: int = 2048
    output: int = 128
    max_step_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("batch", "prompt", "output", "max_step_tokens"):
            option = "--" + name.replace("_", "-")
            if getattr(self, name) < 1:
                raise ValueError(f"{option} {getattr(self, name)} is not a count; use 1 or more")
            if getattr(self, name) > MOST:
                raise ValueError(f"{option} {getattr(self, name)} is too large; use at most {MOST}")


@dataclass(frozen=True)
class Setting:
    """A model on ranks.

    Attributes:
        config, tp: the model and the number of ranks.
        dtype, state_dtype: of weights, activations and convolution state; of the SSM state.
        device, link: each rank's device, and what joins them.
        calibration: how well the kernels do.
        hide_sums: x_proj's sum travels behind the z half of `in_proj`; in prefill of pure SSMs,
            deltas of one half of a chunk travel behind the other half's work.
        looks_ahead: the host prepares a decode step while the one before runs.
        weight_dtype: "auto", or what large matrices are rounded to.
    """

    config: ModelConfig
    tp: int
    dtype: torch.dtype
    device: Device
    link: Link
    calibration: Calibration = field(default_factory=Calibration)
    state_dtype: torch.dtype = torch.float32
    hide_sums: bool = False
    looks_ahead: bool = True
    weight_dtype: str = "auto"


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, on the slowest rank.

    Attributes:
        work: by operator.
        sums: by collective, as far as nothing hides them.
        host: scheduling, launches and the like, as far as nothing hides it.
    """

    work: dict[str, float]
    sums: dict[str, float]
    host: float

    @property
    def total(self) -> float:
        return sum(self.work.values()) + sum(self.sums.values()) + self.host


@dataclass(frozen=True)
class Speed:
    """A projection under one policy; seconds.

    Attributes:
        policy: of the sums.
        ttft: all prompts arrive together; until the last one's first token.
        tpot: of one decode step of the whole batch.
        output_tokens_per_s: generated tokens over the whole time.
        prefill, decode: one full prefill step, and one decode step.
    """

    policy: PhaseCodecs
    ttft: float
    tpot: float
    output_tokens_per_s: float
    prefill: StepTime
    decode: StepTime


def project(setting: Setting, load: Load, policy: PhaseCodecs = EXACT) -> Speed:
    """What `load` would take.

    Raises:
        ValueError: if the model cannot be split over `tp` ranks; names the valid sizes.
    """
    steps = prefill_steps(load)
    times = [step_time(setting, step, policy) for _, step in steps]
    ttft = sum(count * time.total for (count, _), time in zip(steps, times, strict=True))
    middle = load.prompt + load.output / 2
    one_token = Step(load.batch, load.batch, load.batch, middle)
    decode = step_time(setting, one_token, policy)
    total = ttft + (load.output - 1) * decode.total
    return Speed(
        policy=policy,
        ttft=ttft,
        tpot=decode.total,
        output_tokens_per_s=load.batch * load.output / total,
        prefill=times[0],
        decode=decode,
    )


def prefill_steps(load: Load) -> list[tuple[int, Step]]:
    """How often which step prefills all prompts, none above `max_step_tokens`; full ones first."""
    n_full, rest = divmod(load.batch * load.prompt, load.max_step_tokens)
    steps = []
    for count, tokens in ((n_full, load.max_step_tokens), (1, rest)):
        if count and tokens:
            sequences = min(load.batch, -(-tokens // load.prompt))
            steps.append((count, Step(tokens, sequences, sequences, load.prompt / 2)))
    return steps


def step_time(setting: Setting, step: Step, policy: PhaseCodecs) -> StepTime:
    """One step on the slowest rank, under one policy."""
    shape = graph_shape(setting, step)
    if shape is not None:
        step = replace(step, tokens=shape.tokens, fixed_shape=True)
    ranks = [_rank_work(setting, rank, step, policy) for rank in _distinct_ranks(setting)]
    work = max(ranks, key=lambda seconds: sum(seconds.values()))
    wire = Wire(setting.device, setting.link, setting.calibration)
    times = sum_times(setting.config, setting.tp, setting.dtype, step, policy, wire)
    sums = {each.name: each.count * each.seconds for each in times}
    if setting.hide_sums:
        sums = _exposed(setting, step, times, work)
    host, busy = setting.calibration.host_s, sum(work.values()) + sum(sums.values())
    if step.is_decode:
        host = max(0.0, host - busy) if setting.looks_ahead else host
    elif shape is None and setting.device.fuses_scans:
        launches = _kernels(setting, step, policy) + sum(each.count for each in times)
        host += max(0.0, launches * setting.calibration.launch_s - busy)
    return StepTime(work, sums, host)


def graph_shape(setting: Setting, step: Step) -> StepShape | None:
    """Of the graph that holds a step with prompts; None if Python launches its kernels."""
    if step.is_decode or not setting.device.fuses_scans or setting.config.attention is not None:
        return None
    rows = most_rows(setting.config, setting.tp)
    return StepShape.holding(0, step.sequences, step.tokens, rows)


def _distinct_ranks(setting: Setting) -> list[int]:
    """The first and the last rank: shares differ by one unit at most, the larger ones first."""
    return sorted({0, setting.tp - 1})


def _kernels(setting: Setting, step: Step, policy: PhaseCodecs) -> int:
    """Kernels of a step that is cut into chunks, on any rank."""
    return sum(work.count * (1 + work.kernels_before) for work in _work(setting, 0, step, policy))


def _rank_work(setting: Setting, rank: int, step: Step, policy: PhaseCodecs) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for work in _work(setting, rank, step, policy):
        each = work.count * kernel_time(setting, work)
        seconds[work.name] = seconds.get(work.name, 0.0) + each
    return seconds


def _work(setting: Setting, rank: int, step: Step, policy: PhaseCodecs) -> list[Work]:
    dims = LocalDims.of(setting.config, TensorParallel(rank, setting.tp))
    counter = Counter(
        setting.config,
        dims,
        step,
        setting.dtype,
        setting.state_dtype,
        fuses=setting.device.fuses_scans,
        apart=policy != EXACT,
        weight_dtype=setting.weight_dtype,
    )
    return counter.all()


def kernel_time(setting: Setting, work: Work) -> float:
    """Seconds of one operator: its slowest resource, and the fixed cost of its kernels.

    A product waits for the last of its loads before it can end. A scan of single tokens takes its
    time for loads that follow each other, so few bytes do not make it shorter.
    """
    device, reached = setting.device, setting.calibration
    bandwidth = reached.memory if work.kind == "gemm" else getattr(reached, work.kind)
    rate = reached.ssd if work.kind == "ssd" else reached.gemm
    special = work.special
    fixed = reached.product_s if work.weight_elements else reached.kernel_s
    if work.kind == "row":
        fixed = reached.row_s
    if device.cuts_scans:
        special += work.special_before
        fixed += work.kernels_before * reached.kernel_s
    busy = max(
        work.bytes / (device.bytes_per_s * bandwidth),
        work.flops / (device.flops(setting.dtype) * rate),
        special / (device.special_per_s * reached.special),
    )
    return max(busy + fixed, reached.update_s if work.updates else 0.0)


def _exposed(
    setting: Setting, step: Step, times: list[SumTime], work: dict[str, float]
) -> dict[str, float]:
    """Seconds of each collective that remain when sums travel behind other work."""
    layers = setting.config.n_layers
    exposed = {}
    for each in times:
        behind = 0.0
        if each.name == "x_proj sum":
            behind = work["in_proj"] / 2 / layers
        elif each.name == "out_proj sum" and not step.is_decode and setting.config.mlp is None:
            # One half's sum behind the other half's layer: all of it but what is slower than that.
            behind = sum(work.values()) / layers
        exposed[each.name] = each.count * max(0.0, each.seconds - behind)
    return exposed


def single(setting: Setting) -> Setting:
    """The same on one rank."""
    return replace(setting, tp=1)
