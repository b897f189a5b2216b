"""Where a model is: a local folder or file, or a Hugging Face hub id, fetched into its cache."""

from pathlib import Path

from huggingface_hub import snapshot_download

from sidewinder.checkpoint.gguf_files import SUFFIX

CONFIG_PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja"]
SAFETENSORS_PATTERNS = ["model*.safetensors"]
BIN_PATTERNS = ["pytorch_model*.bin"]


def resolve_model(model: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of `model`, or its GGUF file.

    Args:
        model: a folder, a `.gguf` file, or a hub id such as "state-spaces/mamba-130m-hf".
        revision: branch, tag or commit of a hub id.
        weights: fetch weight files too, `.bin` only where there are no safetensors; without, only
            configuration and tokenizer.

    Raises:
        ValueError: if `model` is neither an existing folder or GGUF file nor a hub id that can be
            fetched.
    """
    folder = Path(model).expanduser()
    if folder.is_dir() or (folder.suffix == SUFFIX and folder.is_file()):
        return folder
    name = str(model)
    if folder.suffix == SUFFIX:
        raise ValueError(f"{name} does not exist; give a .gguf file, a model folder or a hub id")
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(
            f"model {name!r} is not a folder; give a model folder or a hub id, or a .gguf file"
            f"{_models_near(folder)}"
        )
    if not weights:
        return _fetch(name, revision, CONFIG_PATTERNS)
    found = _fetch(name, revision, CONFIG_PATTERNS + SAFETENSORS_PATTERNS)
    if not any(found.glob("*.safetensors")):
        found = _fetch(name, revision, CONFIG_PATTERNS + BIN_PATTERNS)
    return found


def models_in(folder: Path) -> str:
    """What an error says of a folder that holds models: a few of them, or nothing."""
    configs = folder.glob("*/config.json") if folder.is_dir() else ()
    found = sorted(str(config.parent) for config in configs)
    return f"; there are {', '.join(found[:5])}" if found else ""


def _models_near(missing: Path) -> str:
    """The same of the folder that `missing` would be in, where it is one below the current one."""
    return models_in(missing.parent) if missing.parent != Path(".") else ""


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        # The hub client raises errors of several libraries: HTTP, network, cache and validation.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        at = f" at revision {revision!r}" if revision else ""
        owner = "" if "/" in name else "; a hub id has an owner, as in state-spaces/mamba-130m-hf"
        raise ValueError(
            f"model {name!r}{at} is neither a local folder nor could it be fetched from the hub "
            f"({reason}); check the name, the network (HF_HUB_OFFLINE) and your access{owner}"
            f"{_models_near(Path(name))}"
        ) from error
