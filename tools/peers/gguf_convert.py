"""Write a random-weight Mamba or Falcon-Mamba model of a published shape as GGUF, for llama.cpp.

Names and metadata keys follow llama.cpp's `mamba` architecture. Only speed is measured with it, so
weights are random and there is no tokenizer ("no_vocab"). Mamba-2 and Zamba are not written: the
first needs other keys, the second llama.cpp does not run.
"""

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from sidewinder.bench.shapes import shape_values

FILE_TYPES = {
    "float32": gguf.GGMLQuantizationType.F32,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def sizes(shape: str) -> dict[str, int]:
    """The sizes of a shape that a Mamba-1 file needs.

    Raises:
        ValueError: for a family that this converter does not write.
    """
    values = shape_values(shape)
    if values["model_type"] not in ("mamba", "falcon_mamba"):
        raise ValueError(
            f"{shape} is a {values['model_type']} model; llama.cpp files are written for mamba"
        )
    d_model = values["hidden_size"]
    return {
        "vocab_size": values["vocab_size"],
        "d_model": d_model,
        "n_layers": values["num_hidden_layers"],
        "d_inner": 2 * d_model,
        "d_state": values["state_size"],
        "d_conv": values.get("conv_kernel", 4),
        "dt_rank": values.get("time_step_rank", -(-d_model // 16)),
    }


def write(shape: str, file_type: str, path: Path) -> Path:
    """Write `shape` with matrices of `file_type` to `path` and return it."""
    n = sizes(shape)
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(n["d_model"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(n["n_layers"])
    writer.add_ssm_conv_kernel(n["d_conv"])
    writer.add_ssm_inner_size(n["d_inner"])
    writer.add_ssm_state_size(n["d_state"])
    writer.add_ssm_time_step_rank(n["dt_rank"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_dt_b_c_rms(shape_values(shape)["model_type"] == "falcon_mamba")
    writer.add_vocab_size(n["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in _tensors(n):
        _add(writer, name, tensor, file_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(n: dict[str, int]) -> Any:
    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns) * columns**-0.5

    yield "token_embd.weight", matrix(n["vocab_size"], n["d_model"])
    yield "output_norm.weight", torch.ones(n["d_model"])
    for i in range(n["n_layers"]):
        block = f"blk.{i}."
        yield block + "attn_norm.weight", torch.ones(n["d_model"])
        yield block + "ssm_in.weight", matrix(2 * n["d_inner"], n["d_model"])
        yield block + "ssm_conv1d.weight", torch.randn(n["d_inner"], n["d_conv"]) * 0.3
        yield block + "ssm_conv1d.bias", torch.zeros(n["d_inner"])
        yield block + "ssm_x.weight", matrix(n["dt_rank"] + 2 * n["d_state"], n["d_inner"])
        yield block + "ssm_dt.weight", matrix(n["d_inner"], n["dt_rank"])
        yield block + "ssm_dt.bias", torch.full((n["d_inner"],), -4.0)
        yield block + "ssm_a", -torch.arange(1.0, n["d_state"] + 1).repeat(n["d_inner"], 1)
        yield block + "ssm_d", torch.ones(n["d_inner"])
        yield block + "ssm_out.weight", matrix(n["d_model"], n["d_inner"])


def _add(writer: Any, name: str, tensor: torch.Tensor, file_type: str) -> None:
    values = tensor.numpy()
    kind = FILE_TYPES[file_type]
    keep = values.ndim == 1 or "conv1d" in name or name.endswith("ssm_a")
    if keep or kind == gguf.GGMLQuantizationType.F32 or values.shape[-1] % 32:
        writer.add_tensor(name, values.astype(np.float32))
        return
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", help="a published shape, or a folder with config.json")
    parser.add_argument("file_type", choices=sorted(FILE_TYPES))
    parser.add_argument("path", type=Path)
    args = parser.parse_args()
    write(args.shape, args.file_type, args.path)


if __name__ == "__main__":
    main()
