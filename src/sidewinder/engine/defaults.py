"""What a checkpoint says about generating with it: `generation_config.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidewinder.config import ModelConfig

MOST_TEMPERATURE = 1e6
"""All tokens are equally likely long before it."""


@dataclass(frozen=True)
class GenerationDefaults:
    """Used where a request leaves them open.

    Attributes:
        temperature: the generation config's, else 1.
        eos_token_ids: ids that end a text: the generation config's, else the model config's.
    """

    temperature: float
    eos_token_ids: tuple[int, ...]


def generation_defaults(folder: Path, config: ModelConfig) -> GenerationDefaults:
    """Read the defaults of the model in `folder`.

    Raises:
        ValueError: if `generation_config.json` is there and broken.
    """
    file = folder / "generation_config.json"
    values = _read(file) if file.is_file() else {}
    temperature = values.get("temperature")
    eos = values.get("eos_token_id")
    temperature = 1.0 if temperature is None else temperature
    if not _is(temperature, int | float) or not 0 <= temperature <= MOST_TEMPERATURE:
        raise ValueError(
            f"{file}: temperature={temperature!r} is not a number from 0 to {MOST_TEMPERATURE:g}"
        )
    ids = tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,))
    if not all(_is(token, int) for token in ids):
        raise ValueError(f"{file}: eos_token_id={eos!r} is not a token id or a list of them")
    ids = ids or config.eos_token_ids
    known = tuple(token for token in ids if 0 <= token < config.vocab_size)
    return GenerationDefaults(float(temperature), known)


def _is(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # numbers without end, nesting without end too
        raise ValueError(f"{file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object; fetch it again")
    return values
