"""What a checkpoint says of how its matrices are stored: `quantization_config` of `config.json`, or
ModelOpt's `hf_quant_config.json`.

Only what the tensors themselves do not show is taken: sizes of blocks and bits of integers. Which
matrices are stored so is seen from their tensors; lists of modules that are not are read by nobody.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEYS = ("quantization_config", "compression_config")
"""In `config.json`; the second is compressed-tensors' older one."""

MODELOPT_FILE = "hf_quant_config.json"

FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized",
           "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")  # fmt: skip
"""Of compressed-tensors; "mixed-precision" has one for each group of modules."""

UNPACKED = (None, "dense", "mixed-precision")
"""Formats of a whole file that say nothing of any tensor."""

ALGORITHMS = {
    "FP8": (),
    "FP8_PER_CHANNEL_PER_TOKEN": (),
    "FP8_PB_WO": ((128, 128),),
    "NVFP4": ((1, 16),),
    "W4A16_NVFP4": ((1, 16),),
    "MXFP8": ((1, 32),),
}
"""Of ModelOpt, with the blocks of their scales where a file does not say their `group_size`;
"MIXED_PRECISION" has one for each module."""

PACKED_BITS = (2, 4, 8)
"""Of integers that fill a 32-bit word without a rest."""

GPTQ_FORMATS = ("gptq", "gptq_v2")
"""`checkpoint_format`; the first stores zeros less one."""

AWQ_BITS = 4

Block = tuple[int, int]


@dataclass(frozen=True)
class Quantisation:
    """How a checkpoint's matrices are stored.

    Attributes:
        method: `quant_method`.
        blocks: `(rows, columns)` that a scale may be of, besides one row and the whole matrix.
        bits: that packed integers may have.
        zeros_less_one: of packed zeros one less is stored than they are.
        rounds_activations: the file was made for activations, keys or values in few bits, too.
    """

    method: str
    blocks: tuple[Block, ...] = ()
    bits: tuple[int, ...] = ()
    zeros_less_one: bool = False
    rounds_activations: bool = False


def find_quantisation(folder: Path) -> Quantisation | None:
    """What the files in `folder` say; None if they are of no quantised checkpoint, or missing.

    Raises:
        ValueError: if the way is not supported, or a file is broken.
    """
    config, modelopt = folder / "config.json", folder / MODELOPT_FILE
    found = quantisation_in(_read(config), str(config)) if config.is_file() else None
    if found is None and modelopt.is_file():
        return parse_quantisation(_read(modelopt), str(modelopt))
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object; fetch it again")
    return values


def quantisation_in(contents: Mapping[str, Any], source: str) -> Quantisation | None:
    """What the values of a `config.json` say; None if it is of no quantised checkpoint.

    Raises:
        ValueError: if the way is not supported; `source` names the file.
    """
    for key in KEYS:
        if contents.get(key) is not None:
            return parse_quantisation(contents[key], f"{source}: {key}")
    return None


def parse_quantisation(values: Any, source: str) -> Quantisation:
    """What one such object says.

    Raises:
        ValueError: if the way is not supported; `source` names the object.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source} is no JSON object; fetch the file again")
    method = values.get("quant_method", _guessed_method(values))
    parse = _PARSERS.get(method) if isinstance(method, str) else None
    if parse is None:
        raise _unsupported(source, f"quant_method={method!r}")
    try:
        return parse(values)
    except _Unsupported as error:
        raise _unsupported(source, str(error)) from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is broken ({error}); fetch the file again") from error


def _guessed_method(values: Mapping[str, Any]) -> str | None:
    """Of objects that do not say it: ModelOpt's own file, and compressed-tensors' older ones."""
    if "quantization" in values or "quant_algo" in values:
        return "modelopt"
    return "compressed-tensors" if "config_groups" in values else None


class _Unsupported(Exception):
    """Names what the file says and we cannot read."""


def _unsupported(source: str, what: str) -> ValueError:
    return ValueError(
        f"{source}: {what} is not supported; quantised checkpoints that are: compressed-tensors "
        f"({', '.join(FORMATS)}), modelopt ({', '.join(ALGORITHMS)}), fp8, fbgemm_fp8, gptq, "
        "awq (gemm), bitsandbytes; or use the unquantised weights, with --weight-dtype int8 or int4"
    )


def _compressed_tensors(values: Mapping[str, Any]) -> Quantisation:
    sparsity = values.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        raise _Unsupported(f"sparsity_config.format={sparsity['format']!r}")
    if values.get("transform_config"):
        raise _Unsupported("transform_config, which rotates activations,")
    groups = list((values.get("config_groups") or {}).values())
    formats = {values.get("format"), *(group.get("format") for group in groups)} - {*UNPACKED}
    if unknown := sorted(formats - {*FORMATS}):
        raise _Unsupported(f"format={unknown[0]!r}")
    weights = [group["weights"] for group in groups if group.get("weights")]
    bits = {each.get("num_bits", 8) for each in weights if each.get("type", "int") == "int"}
    if "pack-quantized" in formats and (odd := sorted(bits - {*PACKED_BITS})):
        raise _Unsupported(f"pack-quantized with num_bits={odd[0]}")
    others = ("input_activations", "output_activations")
    return Quantisation(
        method="compressed-tensors",
        blocks=tuple(dict.fromkeys(_blocks(weights))),
        bits=tuple(sorted(bits)),
        rounds_activations=values.get("kv_cache_scheme") is not None
        or any(group.get(name) is not None for group in groups for name in others),
    )


def _blocks(weights: list[Mapping[str, Any]]) -> Iterator[Block]:
    for each in weights:
        size, tile = each.get("group_size"), each.get("block_structure")
        if size is not None and size != -1:  # -1 is a whole row
            yield _block(1, size)
        if tile is not None:
            yield _block(*tile)


def _block(rows: Any, columns: Any) -> Block:
    if type(rows) is not int or type(columns) is not int or min(rows, columns) < 1:
        raise ValueError(f"blocks of {rows!r} times {columns!r} weights")
    return rows, columns


def _modelopt(values: Mapping[str, Any]) -> Quantisation:
    """The object is in `config.json` as it is, and one level deeper in a file of its own."""
    values = values.get("quantization", values)
    layers = list((values.get("quantized_layers") or {}).values())
    if values.get("quant_algo") != "MIXED_PRECISION":
        layers.append(values)
    blocks: list[Block] = []
    for layer in layers:
        if (name := layer.get("quant_algo")) is None:  # only keys and values are
            continue
        if str(name).upper() not in ALGORITHMS:
            raise _Unsupported(f"quant_algo={name!r}")
        stated = layer.get("group_size")
        blocks += [_block(1, stated)] if stated else ALGORITHMS[str(name).upper()]
    return Quantisation("modelopt", tuple(dict.fromkeys(blocks)), rounds_activations=True)


def _fp8(values: Mapping[str, Any]) -> Quantisation:
    size = values.get("weight_block_size")
    return Quantisation("fp8", (_block(*size),) if size else (), rounds_activations=True)


def _fbgemm_fp8(values: Mapping[str, Any]) -> Quantisation:  # noqa: ARG001
    return Quantisation("fbgemm_fp8", rounds_activations=True)


def _gptq(values: Mapping[str, Any]) -> Quantisation:
    form = values.get("checkpoint_format") or "gptq"
    if form not in GPTQ_FORMATS or values.get("is_marlin_format"):
        raise _Unsupported(f"checkpoint_format={form!r}" if form not in GPTQ_FORMATS else "marlin")
    # Expressions for modules, to what they have instead; those with "-" are not quantised.
    others = [each for each in (values.get("dynamic") or {}).values() if each]
    return Quantisation(
        method="gptq",
        blocks=tuple(dict.fromkeys(_blocks([values, *others]))),
        bits=(_packed_bits(values),),
        zeros_less_one=form == "gptq",
    )


def _awq(values: Mapping[str, Any]) -> Quantisation:
    version = values.get("version") or "gemm"
    if str(version).lower() != "gemm" or _packed_bits(values) != AWQ_BITS:
        raise _Unsupported(f"version={version!r} with bits={_packed_bits(values)}")
    return Quantisation("awq", tuple(_blocks([values])), (AWQ_BITS,))


def _packed_bits(values: Mapping[str, Any]) -> int:
    bits = values.get("bits", values.get("w_bit"))
    if bits not in PACKED_BITS:
        raise _Unsupported(f"bits={bits!r}")
    return int(bits)


def _bitsandbytes(values: Mapping[str, Any]) -> Quantisation:
    """What there is else is with each matrix."""
    return Quantisation("bitsandbytes", rounds_activations=bool(values.get("load_in_8bit")))


_PARSERS = {
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
}
