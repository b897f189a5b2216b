"""What must be the same for a state of an earlier run to be resumed."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from sidewinder.checkpoint.gguf_files import find_gguf, gguf_parts
from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.sensitivity import policy_for
from sidewinder.state.cache.disk import FORMAT

HARMLESS = frozenset({
    "model", "tp", "device", "threads", "revision", "tokenizer", "max_model_len", "max_batch_size",
    "max_step_tokens", "kv_cache_tokens", "state_cache_bytes", "state_cache_host_bytes",
    "state_cache_dir", "state_cache_disk_bytes", "state_cache_interval", "launch", "timeout_s",
    "seed", "progress", "scheduling", "overlap", "cuda_graphs", "thresholds", "speculate",
    "generation_config",
})  # fmt: skip
"""Options that do not change a state, or by rounding only. Every other one counts, new ones too."""


def fingerprint(engine: EngineConfig, model: ModelConfig) -> str:
    """SHA-256 of weights, architecture and all options that change states.

    Args:
        engine: `model` is a local folder or GGUF file, whose weights are all read; `dtype` is
            resolved.
        model: the architecture.
    """
    options = {name: value for name, value in asdict(engine).items() if name not in HARMLESS}
    parts = {
        "format": FORMAT,
        "options": options,
        "policy": repr(policy_for(engine, model)),
        "model": asdict(model),
        "weights": {} if engine.load_format == "random" else _weights(Path(engine.model)),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _weights(path: Path) -> dict[str, str]:
    """Checksums of the weight files, by name: those that are loaded."""
    gguf = find_gguf(path)
    if gguf is not None:
        files = gguf_parts(gguf)
    else:
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    return {file.name: _checksum(file) for file in files}


def _checksum(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
