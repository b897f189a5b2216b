"""Writes checkpoints with quantised matrices, and the same ones with what those stand for."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from quantised_matrices import (
    GROUP,
    TILE,
    Encoded,
    awq,
    fp4,
    fp8,
    gptq,
    int8,
    line_of_four_bits,
    mxfp8,
    packed,
    packed_in_order,
    rows_of_int8,
)
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A way to store matrices: `encode` takes one, `config` is the file's `quantization_config`."""

    encode: Callable[[Tensor], Encoded]
    config: dict[str, Any]
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Scales of activations of every matrix."""
    takes: Callable[[Tensor], bool] = lambda _: True
    """Whether the format has a way for such a matrix."""


def compressed_tensors(form: str, activations: Any = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def modelopt(algorithm: str, **more: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"]} | more


def even_columns(weight: Tensor) -> bool:
    return weight.shape[-1] % 2 == 0


def two_dimensional(weight: Tensor) -> bool:
    return weight.dim() == 2


def rows_in_eights(weight: Tensor) -> bool:
    return weight.dim() == 2 and weight.shape[0] % 8 == 0


ALL = (1 << 30, 1 << 30)
ROW = (1, 1 << 30)
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
INT8 = {"num_bits": 8, "type": "int"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
DYNAMIC = {"num_bits": 8, "dynamic": True, "strategy": "token"}

FORMATS = {
    "fp8 tensor": Format(
        lambda weight: fp8(weight, ALL), compressed_tensors("float-quantized", **FLOAT8)
    ),
    "fp8 channel": Format(
        lambda weight: fp8(weight, ROW),
        compressed_tensors("float-quantized", strategy="channel", **FLOAT8),
    ),
    "fp8 block": Format(
        lambda weight: fp8(weight, TILE),
        compressed_tensors(
            "float-quantized", strategy="block", block_structure=list(TILE), **FLOAT8
        ),
    ),
    "int8 channel": Format(
        lambda weight: int8(weight, ROW), compressed_tensors("int-quantized", **INT8)
    ),
    "int8 tensor": Format(
        lambda weight: int8(weight, ALL), compressed_tensors("naive-quantized", **INT8)
    ),
    "int8 with zeros": Format(
        lambda weight: int8(weight, ROW, symmetric=False),
        compressed_tensors("int-quantized", symmetric=False, **INT8),
    ),
    "int4 groups": Format(
        lambda weight: packed(weight, 4, GROUP), compressed_tensors("pack-quantized", **INT4)
    ),
    "int4 groups, flat shape": Format(
        lambda weight: packed(weight, 4, GROUP, flat_shape=True),
        compressed_tensors("pack-quantized", **INT4),
    ),
    "int4 with zeros": Format(
        lambda weight: packed(weight, 4, GROUP, symmetric=False),
        compressed_tensors("pack-quantized", symmetric=False, **INT4),
    ),
    "int4 channel": Format(
        lambda weight: packed(weight, 4, 1 << 30),
        compressed_tensors("pack-quantized", num_bits=4, type="int", strategy="channel"),
    ),
    "int8 packed": Format(
        lambda weight: packed(weight, 8, GROUP, symmetric=False),
        compressed_tensors("pack-quantized", group_size=GROUP, symmetric=False, **INT8),
    ),
    "int2 packed": Format(
        lambda weight: packed(weight, 2, GROUP),
        compressed_tensors("pack-quantized", num_bits=2, type="int", group_size=GROUP),
    ),
    "modelopt fp8": Format(
        lambda weight: fp8(weight, None),
        modelopt("FP8"),
        {"input_scale": torch.tensor(0.5), "k_scale": torch.tensor(1.0)},
    ),
    "modelopt channel": Format(
        lambda weight: fp8(weight, ROW), modelopt("FP8_PER_CHANNEL_PER_TOKEN")
    ),
    "block fp8": Format(
        lambda weight: fp8(weight, TILE, "weight_scale_inv"),
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(TILE)},
    ),
    "fbgemm": Format(
        lambda weight: fp8(weight, ROW),
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        {"input_scale_ub": torch.tensor([1200.0])},
    ),
    "modelopt nvfp4": Format(
        lambda weight: fp4(weight, ("weight", "weight_scale_2")),
        modelopt("NVFP4", group_size=GROUP),
        {"input_scale": torch.tensor(0.5)},
        even_columns,
    ),
    "nvfp4": Format(
        lambda weight: fp4(weight, ("weight_packed", "weight_global_scale")),
        compressed_tensors(
            "nvfp4-pack-quantized", DYNAMIC, num_bits=4, type="float", group_size=GROUP
        ),
        {"input_global_scale": torch.tensor([2.0])},
        even_columns,
    ),
    "mxfp4": Format(
        lambda weight: fp4(weight, ("weight_packed", ""), mx=True),
        compressed_tensors("mxfp4-pack-quantized", num_bits=4, type="float", group_size=GROUP),
        takes=even_columns,
    ),
    "mxfp8": Format(mxfp8, compressed_tensors("mxfp8-quantized", group_size=GROUP, **FLOAT8)),
}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True}

OF_MATRICES = {
    "int4 in another order": Format(
        packed_in_order,
        compressed_tensors("pack-quantized", actorder="group", **INT4),
        takes=two_dimensional,
    ),
    "gptq": Format(lambda weight: gptq(weight, 4, 1), GPTQ, takes=two_dimensional),
    "gptq in another order": Format(
        lambda weight: gptq(weight, 4, 1, in_order=False), GPTQ, takes=two_dimensional
    ),
    "gptq v2": Format(
        lambda weight: gptq(weight, 8, 0),
        GPTQ | {"bits": 8, "checkpoint_format": "gptq_v2"},
        takes=two_dimensional,
    ),
    "gptq rows": Format(
        lambda weight: gptq(weight, 2, 1, group=1 << 30),
        GPTQ | {"bits": 2, "group_size": -1},
        takes=two_dimensional,
    ),
    "awq": Format(
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
        takes=rows_in_eights,
    ),
    "bitsandbytes int8": Format(
        rows_of_int8,
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        takes=two_dimensional,
    ),
    "nf4": Format(
        lambda weight: line_of_four_bits(weight, 14, nested=False),
        BITSANDBYTES,
        takes=two_dimensional,
    ),
    "nf4 with nested scales": Format(
        lambda weight: line_of_four_bits(weight, 7, nested=True),
        BITSANDBYTES,
        takes=two_dimensional,
    ),
}
"""Not for experts in one tensor."""

EVERY = FORMATS | OF_MATRICES


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether quantisers take it: linear layers' weights, but of routers, and not the embedding."""
    plain = ("conv1d", "embed", "router", "gate.weight", "norm")
    return name.endswith(".weight") and tensor.dim() > 1 and not any(part in name for part in plain)


def write_pair(folder: Path, plain: Path, form: Format, tied_head: bool = False) -> Path:
    """`folder` as `form` has it, quantised from the checkpoint in `plain`, in which every matrix
    becomes what it stands for in `folder`.

    `plain` is a folder of the test's own: a copy.
    """
    shutil.copytree(plain, folder, dirs_exist_ok=True)
    tensors = load_file(plain / "model.safetensors")
    stored, stand_for = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if (
            is_matrix(name, weight)
            and form.takes(weight)
            and not (tied_head and name == "lm_head.weight")
        ):
            parts, stand_for[name] = form.encode(weight)
            del stored[name]
            module = name.removesuffix("weight")
            stored |= {module + end: part.contiguous().clone() for end, part in parts.items()}
            stored |= {module + end: part.clone() for end, part in form.extra.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(stand_for, plain / "model.safetensors", {"format": "pt"})
    set_config(folder, form.config)
    return folder


def set_config(folder: Path, config: dict[str, Any] | None) -> None:
    """What `config.json` says of quantisation."""
    file = folder / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"quantization_config": config}))
