"""How long a step's collectives take, by the policy of the sums."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sidewinder.collectives.quantised.policy import PhaseCodecs
from sidewinder.config import ModelConfig
from sidewinder.ops.codec.formats import CODECS, Codec
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.devices import Device
from sidewinder.projection.links import Link
from sidewinder.projection.work import Step
from sidewinder.sharding.traffic import Collective, collectives_of

DELTAS = ("out_proj sum", "attention.o sum", "mlp.down sum")
"""The sums that a codec may serve (`collectives.quantised.policy.delta_sites`)."""

EXACT = PhaseCodecs()


def policies(dtype: torch.dtype) -> list[PhaseCodecs]:
    """Exact sums, and every codec that saves bytes: in both phases, and in prefill only."""
    saving = [codec for codec in CODECS.values() if codec.bits < 8 * dtype.itemsize]
    both = [PhaseCodecs(codec, codec) for codec in saving]
    return [EXACT, *both, *(PhaseCodecs(codec, None) for codec in saving)]


@dataclass(frozen=True)
class SumTime:
    """The collectives of one kind in a step.

    Attributes:
        name: as in the plan.
        count: how many.
        seconds: of one.
        wire_bytes: that one rank receives for one.
        algorithm: "one-shot", "two-shot" or "gather", with the codec's name.
    """

    name: str
    count: int
    seconds: float
    wire_bytes: float
    algorithm: str


@dataclass(frozen=True)
class Wire:
    """What messages pass through.

    Attributes:
        device: whose memory codecs read and write.
        link: between ranks.
        calibration: of the codec kernels.
    """

    device: Device
    link: Link
    calibration: Calibration

    def exact(self, size: float, ranks: int) -> tuple[float, float, str]:
        """Seconds, received bytes and algorithm of the faster plain sum of `size` bytes."""
        ways = [
            (1, size * (ranks - 1), "one-shot"),
            (2, 2 * size * (ranks - 1) / ranks, "two-shot"),
        ]
        return min((self._sent(exchanges, wire), wire, name) for exchanges, wire, name in ways)

    def quantised(
        self, rows: int, width: int, itemsize: int, ranks: int, codec: Codec
    ) -> tuple[float, float, str]:
        """The same of a sum in a codec; its algorithm depends on the ranks alone."""
        size = rows * width * itemsize
        if ranks == 2:
            message = codec.stripe_bytes(rows, width, 1)
            passes = [size + message, 2 * message + size]  # encode; decode and sum
            wire, exchanges, name = message, 1, f"one-shot {codec.name}"
        else:
            stripe = codec.stripe_bytes(rows, width, ranks)
            whole = ranks * stripe
            # Encode; decode, sum and encode a stripe; decode.
            passes = [size + whole, whole + stripe, whole + size]
            wire, exchanges, name = 2 * (ranks - 1) * stripe, 2, f"two-shot {codec.name}"
        rate = self.device.bytes_per_s * self.calibration.codec
        codec_s = sum(moved / rate + self.calibration.kernel_s for moved in passes)
        return self._sent(exchanges, wire) + codec_s, wire, name

    def gather(self, size: float, ranks: int) -> tuple[float, float, str]:
        """An all-gather whose result has `size` bytes."""
        wire = size * (ranks - 1) / ranks
        return self._sent(1, wire), wire, "gather"

    def _sent(self, exchanges: int, wire: float) -> float:
        return exchanges * self.link.exchange_s + wire / self.link.bytes_per_s


def sum_times(
    config: ModelConfig,
    size: int,
    dtype: torch.dtype,
    step: Step,
    policy: PhaseCodecs,
    wire: Wire,
) -> list[SumTime]:
    """The collectives of one step on `size` ranks."""
    found = collectives_of(config, size, dtype)
    codec = policy.decode if step.is_decode else policy.prefill
    if policy != EXACT:  # in both phases: the site has a codec
        found = _with_squares_apart(config, found, dtype)
    times = []
    for each in found:
        if each.operation == "all_gather":
            if not step.sampled:
                continue
            cost = wire.gather(each.bytes * step.sampled, each.ranks)
        elif codec is not None and each.name in DELTAS:
            cost = wire.quantised(step.tokens, each.elements, dtype.itemsize, each.ranks, codec)
        else:
            cost = wire.exact(each.bytes * step.tokens, each.ranks)
        seconds, received, algorithm = cost
        seconds += wire.calibration.skew_s
        times.append(SumTime(each.name, each.layers, seconds, received, algorithm))
    return times


def _with_squares_apart(
    config: ModelConfig, found: Sequence[Collective], dtype: torch.dtype
) -> list[Collective]:
    """Mamba-2's sum of squares, which rides along an exact sum, travels apart from a quantised."""
    apart = []
    for each in found:
        if each.name == "out_proj sum" and each.elements > config.d_model:
            bare = config.d_model
            each = replace(each, elements=bare, bytes=bare * dtype.itemsize)
            apart.append(replace(each, name="gated norm's squares", elements=1, bytes=4))
        apart.append(each)
    return apart
