"""What a checkpoint says about generating with it: `generation_config.json`."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidewinder.config import ModelConfig
from sidewinder.sampling import SamplingParams

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What is read of the file about drawing a token, each by its value where a file has none."""

IGNORED = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "constraints": None,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "token_healing": False,
    "top_h": None,
    "typical_p": 1.0,
    "watermarking_config": None,
}
"""Settings that would change the text and that nothing here does: a file that sets one to another
value than this gets a warning."""


@dataclass(frozen=True)
class GenerationDefaults:
    """Used where a request leaves them open.

    Attributes:
        sampling: values of `SamplingParams`, for each name of `NEUTRAL`: the generation config's,
            else the neutral one.
        eos_token_ids: ids that end a text: the generation config's, else the model config's.
    """

    sampling: Mapping[str, float]
    eos_token_ids: tuple[int, ...]


def generation_defaults(
    folder: Path, config: ModelConfig, samples: bool = True
) -> GenerationDefaults:
    """Read the defaults of the model in `folder`.

    Args:
        folder: where `generation_config.json` may be.
        config: vocabulary, and end-of-text ids if the file names none.
        samples: False takes only the end-of-text ids from the file.

    Raises:
        ValueError: if the file is there and broken.
    """
    file = folder / "generation_config.json"
    values = _read(file) if file.is_file() else {}
    eos = values.get("eos_token_id")
    ids = tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,))
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise ValueError(f"{file}: eos_token_id={eos!r} is not a token id or a list of them")
    ids = ids or config.eos_token_ids
    known = tuple(token for token in ids if 0 <= token < config.vocab_size)
    return GenerationDefaults(_sampling(file, values) if samples else NEUTRAL, known)


def _sampling(file: Path, values: dict[str, Any]) -> dict[str, float]:
    """What `file` says about drawing a token, checked as a request's values are."""
    given = {name: value for name in NEUTRAL if (value := values.get(name)) is not None}
    if values.get("do_sample") is False:  # transformers then takes the likeliest, whatever else
        given["temperature"] = 0.0
    try:
        checked = SamplingParams(**given)
    except ValueError as error:
        remedy = "mend the file, or use generation_config='none'"
        raise ValueError(f"{file}: {error}; {remedy}") from error
    ignored = [
        name
        for name, neutral in IGNORED.items()
        if values.get(name, neutral) not in (None, neutral, [])
    ]
    if ignored:
        warnings.warn(f"{file} sets {', '.join(ignored)}: not supported, ignored", stacklevel=2)
    return NEUTRAL | {name: getattr(checked, name) for name in given}


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # numbers without end, nesting without end too
        raise ValueError(f"{file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object; fetch it again")
    return values
