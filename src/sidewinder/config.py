"""What a model is (`ModelConfig`, from a checkpoint) and what a user asks for (`EngineConfig`)."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sidewinder.elsewhere import meant_keyword
from sidewinder.model_config import ModelConfig
from sidewinder.plain import make_plain

__all__ = ["CHOICES", "EngineConfig", "ModelConfig", "engine_config", "load_model_config"]


def load_model_config(path: str | Path) -> ModelConfig:
    """Read a model's architecture from `config.json`, in transformers' or the authors' layout, or
    from a GGUF file.

    Args:
        path: the model's folder, or the file itself.

    Raises:
        ValueError: if the file is missing or broken, or the architecture or one of its options is
            not supported; says what is.
    """
    # The readers import this module, so they cannot be imported above.
    from sidewinder.checkpoint.config_readers import read_model_config

    return read_model_config(Path(path))


CHOICES: dict[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "weight_dtype": ("auto", "int8", "int4"),
    "state_dtype": ("float32", "bfloat16"),
    "all_reduce": ("auto", "exact", "int8", "int6", "int4"),
    "state_cache_dtype": ("auto", "bfloat16", "int8"),
    "overlap": ("auto", "none", "x_proj", "out_proj", "both"),
    "cuda_graphs": ("auto", "off"),
    "scheduling": ("throughput", "latency"),
    "launch": ("process", "torchrun"),
    "load_format": ("auto", "random"),
    "generation_config": ("auto", "none"),
}
"""Values of the options that are one of a few words."""

LARGEST = 2**63 - 1
"""Of options that count something: what comes of more fits no memory, and no float."""
MOST_SPECULATE = 15
"""Drafts of one sequence in a step: for more, CPUs compute longer than they read weights."""
MOST_TIMEOUT_S = 10**6
"""Operating systems take no wait without end: eleven days."""


@dataclass(frozen=True)
class EngineConfig:
    """Every user option of `LLM`, with its default; validated when made.

    Raises:
        ValueError: if an option has a value that it cannot have; names the value and the limit.

    Attributes:
        model: local folder, GGUF file or hub id.
        tp: number of ranks.
        device: "auto", "cpu" or "cuda".
        dtype: "auto" (the checkpoint's; float16 becomes bfloat16 on CPU), "float32", "bfloat16" or
            "float16".
        weight_dtype: "auto" keeps the weights in `dtype`; "int8" rounds the large matrices while
            loading, with a scale per 64 inputs; "int4" with one per 32, and the head to int8
            (docs/kernels.md).
        state_dtype: dtype of the SSM state, "float32" or "bfloat16".
        all_reduce: how deltas are summed over ranks: "auto" or "exact" in the model's dtype;
            "int8", "int6" or "int4" with so few bits on the wire; or a JSON file that ends in
            ".json", with a codec per layer (docs/quantised-all-reduce.md).
        all_reduce_kl: mean KL divergence, in nats per token, that quantised sums may cost: codecs
            are chosen per layer from what `sidewinder eval --sensitivity` measured. `all_reduce`
            then names the fewest bits ("auto": int4), or the file of measurements.
        rotate: fold an orthogonal rotation of the residual stream into the weights while loading,
            so that quantised sums meet no outlying channels.
        overlap: which sums over ranks travel while the rank computes something else: "x_proj"
            (behind the z half of in_proj), "out_proj" (of half a prefill chunk, behind the other
            half), "both", "none"; "auto" as it measured faster on the transport in use.
        thresholds: JSON file `{"one_shot_bytes": N}` that pins up to which size three or more ranks
            sum everything themselves (docs/parallel.md); None measures it at start-up.
        threads: CPU threads per rank; None divides the usable cores among the ranks.
        revision: hub revision.
        tokenizer: folder, GGUF file or hub id of the tokenizer when it is not the model's.
        max_model_len: longest prompt plus output in tokens; None means no limit of ours.
        max_batch_size: most sequences that run at once (state slots).
        max_step_tokens: most tokens in one step; longer prompts are prefilled in chunks.
        speculate: most tokens that a step guesses ahead of a text, from what followed its end
            before, and checks together; the text stays the same (docs/generation.md). 0: none.
        scheduling: "throughput" fills steps with prompts; "latency" lets only so many prompt tokens
            run beside decodes that a step takes less than twice as long (docs/generation.md).
        kv_cache_tokens: hybrids: tokens that the KV pages of all running sequences hold together;
            None chooses from memory.
        state_cache_bytes: memory per rank for the states of prefixes that were run
            (docs/state-cache.md); None chooses from what is free, 0 keeps none.
        state_cache_host_bytes: GPU: host memory per rank for states that fell out of it; None
            chooses. On a CPU both are the same memory: None is 0.
        state_cache_dtype: of kept states: "auto" (as they are), "bfloat16" or "int8".
        state_cache_dir: folder for states that shall outlive the process; None for none.
        state_cache_disk_bytes: most bytes in that folder.
        state_cache_interval: tokens between two kept states at the beginning of a prompt.
        cuda_graphs: "auto" (decode steps, and pure SSMs' steps with prompts, are CUDA graphs where
            device, transport and operators (Triton's) allow it; decode steps on a CPU are recorded
            native calls) or "off"
            (all steps run from Python).
        launch: "process" (fresh worker processes; tp=1 runs in this one) or "torchrun".
        timeout_s: seconds after which a silent rank is declared dead.
        load_format: "auto" (the checkpoint's files) or "random" (config only; for benchmarks).
        generation_config: "auto" takes what requests leave open of how a token is drawn from the
            model's `generation_config.json`, "none" only its end-of-text ids.
        seed: default seed of sampling; None draws one.
        progress: show progress bars on standard error.
    """

    model: str
    tp: int = 1
    device: str = "auto"
    dtype: str = "auto"
    weight_dtype: str = "auto"
    state_dtype: str = "float32"
    all_reduce: str = "auto"
    all_reduce_kl: float | None = None
    rotate: bool = False
    overlap: str = "auto"
    thresholds: str | None = None
    threads: int | None = None
    revision: str | None = None
    tokenizer: str | None = None
    max_model_len: int | None = None
    max_batch_size: int = 32
    max_step_tokens: int = 2048
    speculate: int = 0
    scheduling: str = "throughput"
    kv_cache_tokens: int | None = None
    state_cache_bytes: int | None = None
    state_cache_host_bytes: int | None = None
    state_cache_dtype: str = "auto"
    state_cache_dir: str | None = None
    state_cache_disk_bytes: int = 16 << 30
    state_cache_interval: int = 512
    cuda_graphs: str = "auto"
    launch: str = "process"
    timeout_s: float = 60.0
    load_format: str = "auto"
    generation_config: str = "auto"
    seed: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        make_plain(self)
        self._check_text("model", required=True)
        self._check_text("revision")
        self._check_text("tokenizer")
        self._check_text("thresholds")
        self._check_integer("tp")
        self._check_integer("max_batch_size")
        self._check_integer("max_step_tokens")
        for name in ("threads", "max_model_len", "kv_cache_tokens"):
            self._check_integer(name, optional=True)
        self._check_integer("seed", optional=True, minimum=0)
        self._check_state_cache()
        self._check_integer("speculate", minimum=0)
        if self.speculate > MOST_SPECULATE:
            raise ValueError(
                f"speculate={self.speculate} is more than a step can gain from; use at most "
                f"{MOST_SPECULATE}"
            )
        self._check_scheduling()
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            is_policy = name == "all_reduce" and isinstance(value, str) and value.endswith(".json")
            if value not in choices and not is_policy:
                others = " or a .json file" if name == "all_reduce" else ""
                listed = " or ".join(choices) + others
                raise ValueError(f"{name}={value!r} is not supported; use {listed}")
        for name in ("progress", "rotate"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} is not True or False")
        self._check_budget()
        if not _is_number(self.timeout_s) or not 0 < self.timeout_s <= MOST_TIMEOUT_S:
            raise ValueError(
                f"timeout_s={self.timeout_s!r} is not a positive number of seconds, at most "
                f"{MOST_TIMEOUT_S}"
            )

    def _check_budget(self) -> None:
        budget = self.all_reduce_kl
        if budget is None:
            return
        if not _is_number(budget) or not 0 < budget < math.inf:
            raise ValueError(f"all_reduce_kl={budget!r} is not a positive number of nats per token")
        if self.all_reduce == "exact":
            raise ValueError(
                "all_reduce='exact' leaves nothing to choose within "
                f"all_reduce_kl={budget!r}; use auto or the fewest bits allowed"
            )

    def _check_scheduling(self) -> None:
        if self.scheduling == "latency" and self.launch == "torchrun":
            raise ValueError(
                "scheduling='latency' needs one process that times the steps; use launch='process'"
            )

    def _check_state_cache(self) -> None:
        self._check_text("state_cache_dir")
        for name in ("state_cache_bytes", "state_cache_host_bytes"):
            self._check_integer(name, optional=True, minimum=0)
        self._check_integer("state_cache_disk_bytes")
        self._check_integer("state_cache_interval", minimum=16)
        if self.state_cache_dir is not None and self.launch == "torchrun":
            raise ValueError(
                "state_cache_dir needs one process that knows what is on disk; use "
                "launch='process', or no state_cache_dir"
            )

    def _check_text(self, name: str, required: bool = False) -> None:
        value = getattr(self, name)
        if value is None and not required:
            return
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name}={value!r} must be a folder, hub id or name, and not empty")

    def _check_integer(self, name: str, optional: bool = False, minimum: int = 1) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or value < minimum:
            either = ", or None" if optional else ""
            raise ValueError(f"{name}={value!r} must be an integer of at least {minimum}{either}")
        if value > LARGEST:
            raise ValueError(f"{name}={value} is too large; use at most {LARGEST}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def engine_config(**keywords: Any) -> EngineConfig:
    """An `EngineConfig` from keywords.

    Raises:
        ValueError: if a keyword is unknown (says what is meant, and lists the known ones) or has a
            value it cannot have.
    """
    known = [field.name for field in fields(EngineConfig)]
    unknown = [name for name in keywords if name not in known]
    if unknown:
        hints = [f"{name}: {hint}" for name in unknown if (hint := meant_keyword(name, known))]
        listed = f"known: {', '.join(known)}"
        raise ValueError("; ".join([f"unknown option {', '.join(unknown)}", *hints, listed]))
    return EngineConfig(**keywords)
