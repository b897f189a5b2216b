"""What each sum costs in accuracy when a codec serves it, and the codecs that a budget affords.

`sidewinder eval --sensitivity` measures the KL divergence of the model's predictions with one site
quantised and all others exact, for every site and codec, and with all sites quantised. The file of
these figures stays beside the model; `all_reduce_kl` chooses codecs from it.

A row of a sum is rounded alike whether its token is prefilled or decoded, so one figure serves both
phases, and the chosen codec of a site is the same in both.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from sidewinder.agreement import Agreement
from sidewinder.checkpoint.files import open_weights
from sidewinder.checkpoint.gguf_files import SUFFIX
from sidewinder.collectives.quantised.policy import (
    EXACT,
    PhaseCodecs,
    Policy,
    delta_calls,
    policy_of,
)
from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.ops.codec.formats import CODECS
from sidewinder.sensitivity_types import check_types

SWEPT = ("int8", "int6", "int4")
"""Codecs that are measured and chosen from, from most bits to fewest."""

STEPS = 2000
"""A budget is divided into so many parts; costs are rounded up to whole ones."""


@dataclass(frozen=True)
class Sensitivity:
    """What was measured, and of what.

    Attributes:
        fingerprint: of the model (see `fingerprint`).
        tp: number of ranks; it decides how often a sum is rounded.
        dtype, rotate: as the engine ran.
        tokens: predictions that the means are over.
        sites: mean KL in nats with one site quantised, by site and codec.
        together: mean KL with all sites quantised, by codec.
    """

    fingerprint: str
    tp: int
    dtype: str
    rotate: bool
    tokens: int
    sites: Mapping[str, Mapping[str, float]]
    together: Mapping[str, float]

    @staticmethod
    def read(file: Path) -> "Sensitivity":
        """What `write` wrote.

        Raises:
            ValueError: if the file is missing or something else; it names the file and the field.
        """
        try:
            values = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise ValueError(
                f"all_reduce_kl needs {file}, which does not exist; make it with: "
                "sidewinder eval MODEL --text FILE --sensitivity, and the same --tp, --dtype and "
                "--rotate"
            ) from error
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is not a readable file of sensitivities: {error}") from error
        names = {field.name for field in fields(Sensitivity)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"{file} is not a file of sensitivities; it has other fields")
        check_types(file, values, SWEPT)
        return Sensitivity(**values)

    def write(self, file: Path) -> None:
        """Store as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def check(self, file: Path, engine: EngineConfig, model: ModelConfig) -> None:
        """Refuse figures of another model, or of another way to run it.

        Args:
            file: named in the error.
            engine: `model` is a local folder, `dtype` resolved.
            model: its architecture.

        Raises:
            ValueError: names what differs.
        """
        wanted = {
            "fingerprint": fingerprint(engine, model),
            "tp": engine.tp,
            "dtype": engine.dtype,
            "rotate": engine.rotate,
        }
        for name, value in wanted.items():
            own = getattr(self, name)
            if own != value:
                raise ValueError(
                    f"{file} was measured with {name}={own!r}, not {value!r}; measure again with: "
                    "sidewinder eval MODEL --text FILE --sensitivity"
                )
        if set(self.sites) != set(delta_calls(model)):
            raise ValueError(f"{file} does not have the sites of this model; measure again")

    def floor(self, codec: str) -> float:
        """KL that comes with any change at all: in 16 bits it moves what is rounded later.

        Each site's figure holds it once, and so does the figure of all together.
        """
        alone = [costs[codec] for costs in self.sites.values()]
        if len(alone) == 1:
            return 0.0
        return min(max((sum(alone) - self.together[codec]) / (len(alone) - 1), 0.0), min(alone))

    def cost(self, site: str, codec: str) -> float:
        """KL that the site adds beyond the floor; the sum over all sites is what was measured."""
        floor = self.floor(codec)
        alone = sum(costs[codec] - floor for costs in self.sites.values())
        scale = max((self.together[codec] - floor) / alone, 1.0) if alone > 0 else 1.0
        return (self.sites[site][codec] - floor) * scale

    def predicted(self, policy: Policy) -> float:
        """Mean KL that a policy with one codec for both phases should cost."""
        chosen = {site: policy.at(site).prefill for site in self.sites}
        used = {codec.name for codec in chosen.values() if codec is not None}
        floor = max((self.floor(name) for name in used), default=0.0)
        return floor + sum(
            self.cost(site, codec.name) for site, codec in chosen.items() if codec is not None
        )


def fingerprint(engine: EngineConfig, model: ModelConfig) -> str:
    """A digest of the architecture and of the first row of every stored tensor."""
    digest = hashlib.sha256(repr(model).encode())
    if engine.load_format != "random":
        for name, stored in sorted(open_weights(Path(engine.model)).items()):
            first = stored.view[(slice(0, 1),) * min(1, len(stored.shape))]
            digest.update(f"{name} {stored.shape}".encode())
            digest.update(first.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def sensitivity_file(engine: EngineConfig) -> Path:
    """Where the figures are: the file that `all_reduce` names, else beside the model."""
    if engine.all_reduce.endswith(".json"):
        return Path(engine.all_reduce)
    rotated = "-rotated" if engine.rotate else ""
    name = f"all-reduce-tp{engine.tp}-{engine.dtype}{rotated}.json"
    model = Path(engine.model)
    if model.suffix == SUFFIX and not model.is_dir():  # beside the GGUF file
        return model.with_name(f"{model.stem}-{name}")
    return model / name


def sweep(model: ModelConfig) -> list[tuple[str, str | None, Policy]]:
    """The runs of a measurement: codec, its only site (None: all sites), and the policy."""
    runs: list[tuple[str, str | None, Policy]] = []
    for name in SWEPT:
        codecs = PhaseCodecs(CODECS[name], CODECS[name])
        runs.append((name, None, Policy(codecs, {})))
        runs += [(name, site, Policy(PhaseCodecs(), {site: codecs})) for site in delta_calls(model)]
    return runs


def measured_by(
    engine: EngineConfig, model: ModelConfig, found: Sequence[Agreement]
) -> Sensitivity:
    """The sensitivity that the runs of `sweep(model)` found, in their order."""
    sites: dict[str, dict[str, float]] = {}
    together: dict[str, float] = {}
    for (codec, site, _), agreement in zip(sweep(model), found, strict=True):
        of = together if site is None else sites.setdefault(site, {})
        of[codec] = agreement.mean_kl
    return Sensitivity(
        fingerprint=fingerprint(engine, model),
        tp=engine.tp,
        dtype=engine.dtype,
        rotate=engine.rotate,
        tokens=found[0].n_predicted,
        sites=sites,
        together=together,
    )


def policy_for(engine: EngineConfig, model: ModelConfig) -> Policy:
    """The codecs that the options ask for.

    Args:
        engine: `all_reduce`, `all_reduce_kl` and what belongs to the measurement; `model` is a
            local folder, `dtype` resolved.
        model: the architecture.

    Raises:
        ValueError: if a policy or the measurements cannot be read, or belong to something else.
    """
    if engine.all_reduce_kl is None:
        policy = policy_of(engine.all_reduce)
        policy.check_sites(model)
        return policy
    if engine.tp == 1:
        return policy_of(EXACT)
    file = sensitivity_file(engine)
    measured = Sensitivity.read(file)
    measured.check(file, engine, model)
    last = SWEPT.index(engine.all_reduce) if engine.all_reduce in SWEPT else len(SWEPT) - 1
    return choose(measured, model, engine.all_reduce_kl, SWEPT[: last + 1])


def choose(
    measured: Sensitivity, model: ModelConfig, budget: float, codecs: Sequence[str] = SWEPT
) -> Policy:
    """The codecs that send the fewest bytes at a predicted KL of at most `budget`.

    A knapsack: for every part of the budget that is spent, the fewest bytes of the sites so far.

    Args:
        measured: of this model.
        model: the architecture.
        budget: mean KL in nats.
        codecs: those allowed; sums may always stay exact.
    """
    best = Policy(PhaseCodecs(), {})
    for count in range(1, len(codecs) + 1):
        # The floor is the highest of the codecs in use, so fewer codecs may leave more to spend.
        floor = max(measured.floor(name) for name in codecs[:count])
        if floor < budget:
            found = _knapsack(measured, model, budget - floor, codecs[:count])
            if _bytes(found, model) < _bytes(best, model):
                best = found
    return best


def _knapsack(
    measured: Sensitivity, model: ModelConfig, budget: float, codecs: Sequence[str]
) -> Policy:
    fewest = torch.zeros(STEPS + 1, dtype=torch.float64)
    picks: list[torch.Tensor] = []
    calls = delta_calls(model)
    names = [EXACT, *codecs]
    for site, count in calls.items():
        options = torch.full((len(names), STEPS + 1), math.inf, dtype=torch.float64)
        for row, name in enumerate(names):
            steps = 0 if name == EXACT else math.ceil(measured.cost(site, name) / budget * STEPS)
            if steps <= STEPS:
                spent = fewest[: STEPS + 1 - steps]
                options[row, steps:] = spent + count * _row_bytes(name, model)
        fewest, pick = options.min(dim=0)
        picks.append(pick)
    left = STEPS
    chosen: dict[str, PhaseCodecs] = {}
    for site, pick in zip(reversed(calls), reversed(picks), strict=True):
        name = names[int(pick[left])]
        chosen[site] = PhaseCodecs.parse(name, site)
        if name != EXACT:
            left -= math.ceil(measured.cost(site, name) / budget * STEPS)
    return Policy(PhaseCodecs(), {site: chosen[site] for site in calls})


def _row_bytes(name: str, model: ModelConfig) -> float:
    """Of one row of a sum on the wire; an exact one in 16 bits."""
    codec = CODECS["bf16" if name == EXACT else name]
    return codec.stripe_bytes(1, model.d_model, 1)


def _bytes(policy: Policy, model: ModelConfig) -> float:
    """Of all rows of one token."""
    sites = delta_calls(model).items()
    return sum(
        count
        * _row_bytes(EXACT if (codec := policy.at(site).prefill) is None else codec.name, model)
        for site, count in sites
    )
