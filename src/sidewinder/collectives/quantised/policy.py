"""Which codec each sum of a delta uses.

A *site* is a row-parallel projection, or all of a layer's experts, by the name of its parameters:
`layers.3.mixer.out_proj` (whose sum may be that of attention beside the mixer, too),
`shared.attention.o`, `layers.4.experts`. A codec belongs to a site and a phase, never to the size
of a message: else a token's result would depend on the batch around it. A sequence with one token
in a step decodes; one with more is being prefilled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidewinder.config import ModelConfig
from sidewinder.ops.codec.formats import CODECS, Codec

EXACT = "exact"
CODEC_NAMES = (EXACT, *CODECS)


@dataclass(frozen=True)
class PhaseCodecs:
    """The codecs of one site by phase; None sums exactly."""

    prefill: Codec | None = None
    decode: Codec | None = None

    @staticmethod
    def parse(value: Any, where: str) -> "PhaseCodecs":
        """From a codec's name, or `{"prefill": name, "decode": name}`.

        Raises:
            ValueError: for anything else; names `where` it stands.
        """
        if isinstance(value, dict):
            if not value or not set(value) <= {"prefill", "decode"}:
                raise ValueError(f"{where}: phases are prefill and decode, not {', '.join(value)}")
            return PhaseCodecs(**{phase: _codec(name, where) for phase, name in value.items()})
        codec = _codec(value, where)
        return PhaseCodecs(codec, codec)

    def to_json(self) -> str | dict[str, str]:
        """What `parse` reads."""
        if self.prefill is self.decode:
            return _name(self.prefill)
        return {"prefill": _name(self.prefill), "decode": _name(self.decode)}

    def __str__(self) -> str:
        if self.prefill is self.decode:
            return _name(self.prefill)
        return f"{_name(self.prefill)} (decode {_name(self.decode)})"


def _codec(name: object, where: str) -> Codec | None:
    if name not in CODEC_NAMES:
        raise ValueError(f"{where}: {name!r} is not a codec; use {', '.join(CODEC_NAMES)}")
    return None if name == EXACT else CODECS[str(name)]


def _name(codec: Codec | None) -> str:
    return EXACT if codec is None else codec.name


@dataclass(frozen=True)
class Policy:
    """The codecs of all sites.

    Attributes:
        default: of every site that is not in `sites`.
        sites: exceptions, by name.
    """

    default: PhaseCodecs
    sites: Mapping[str, PhaseCodecs]

    def at(self, site: str) -> PhaseCodecs:
        """The codecs of one site."""
        return self.sites.get(site, self.default)

    @property
    def is_exact(self) -> bool:
        """Whether nothing is quantised."""
        return all(codecs == PhaseCodecs() for codecs in (self.default, *self.sites.values()))

    @staticmethod
    def parse(values: Any, where: str) -> "Policy":
        """From `{"default": CODECS, "sites": {SITE: CODECS, ...}}`, both parts optional.

        Raises:
            ValueError: for anything else; names `where` it stands.
        """
        if not isinstance(values, dict) or not set(values) <= {"default", "sites"}:
            raise ValueError(f"{where}: a policy is an object with 'default' and 'sites'")
        sites = values.get("sites", {})
        if not isinstance(sites, dict):
            raise ValueError(f"{where}: 'sites' is an object of sites and their codecs")
        return Policy(
            PhaseCodecs.parse(values.get("default", EXACT), f"{where}: default"),
            {site: PhaseCodecs.parse(value, f"{where}: {site}") for site, value in sites.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads: the content of a policy file."""
        sites = {site: codecs.to_json() for site, codecs in self.sites.items()}
        return {"default": self.default.to_json(), "sites": sites}

    def shares(self, config: ModelConfig) -> dict[str, float]:
        """How much of what deltas send when summed exactly each codec serves, in prefill.

        Returns:
            The share of each codec that occurs, "exact" among them; together 1.
        """
        calls = delta_calls(config)
        found: dict[str, float] = {}
        for site, count in calls.items():
            name = _name(self.at(site).prefill)
            found[name] = found.get(name, 0) + count / sum(calls.values())
        return found

    def check_sites(self, config: ModelConfig) -> None:
        """Refuse a policy that was made for another model.

        Raises:
            ValueError: if it names a site that the model does not have.
        """
        known = delta_sites(config)
        for site in self.sites:
            if site not in known:
                raise ValueError(
                    f"the all-reduce policy names {site}, which this model does not have; "
                    f"its sites are {known[0]} ... {known[-1]}"
                )

    def __str__(self) -> str:
        exceptions = sum(codecs != self.default for codecs in self.sites.values())
        return f"{self.default}" + (f" but for {exceptions} sites" if exceptions else "")


def delta_calls(config: ModelConfig) -> dict[str, int]:
    """The sites of a model, in order, and how many sums of `[T, d_model]` each makes in a step."""
    calls = {}
    for layer in range(config.n_layers):
        if layer in config.mixer_layers:
            calls[f"layers.{layer}.mixer.out_proj"] = 1
        elif layer in config.attention_layers:
            calls[f"layers.{layer}.attention.o"] = 1
        if layer in config.mlp_layers:
            calls[f"layers.{layer}.mlp.down"] = 1
        if layer in config.expert_layers:
            calls[f"layers.{layer}.experts"] = 1
    blocks = config.attention.blocks if config.attention is not None else {}
    for block, layers in blocks.items():
        calls |= {f"{block}.attention.o": len(layers), f"{block}.mlp.down": len(layers)}
    return calls


def delta_sites(config: ModelConfig) -> tuple[str, ...]:
    """The sites of a model, in order: what may be quantised."""
    return tuple(delta_calls(config))


def policy_of(all_reduce: str) -> Policy:
    """What the option `all_reduce` asks for.

    Args:
        all_reduce: "auto", "exact", a codec's name, or a JSON file that ends in `.json`:
            `{"default": CODECS, "sites": {SITE: CODECS, ...}}`, both parts optional, where CODECS
            is a codec's name, "exact", or `{"prefill": ..., "decode": ...}`.

    Raises:
        ValueError: if the file cannot be read, or says something else.
    """
    if not all_reduce.endswith(".json"):
        name = EXACT if all_reduce == "auto" else all_reduce
        return Policy(PhaseCodecs.parse(name, f"all_reduce={all_reduce!r}"), {})
    try:
        values = json.loads(Path(all_reduce).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"all_reduce={all_reduce!r} is not a readable policy: {error}") from error
    return Policy.parse(values, all_reduce)
