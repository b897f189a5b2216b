"""A rank holds its own share of the weights, and nothing more, while it loads."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.checkpoint.names import checkpoint_sources

CONFIG = {
    "model_type": "mamba", "vocab_size": 16384, "hidden_size": 2048, "num_hidden_layers": 18,
    "state_size": 16, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip

BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}

RANK = """
import sys, threading
import torch
from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel

def anonymous_kib():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1])

folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
peak, done = [0], threading.Event()
before = anonymous_kib()

def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], anonymous_kib())

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
weights = load_shard(folder, load_model_config(folder), TensorParallel(rank, size), torch.float32)
done.set()
watcher.join()
print(max(peak[0], anonymous_kib()) - before, sum(value.nbytes for value in weights.values()))
"""


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def parts_of(name: str, shape: tuple[int, ...], quantised: bool) -> Iterator[tuple[str, str, list]]:
    """What a file has of a parameter: `(name, dtype, shape)`."""
    if not quantised or "mixer" not in name or len(shape) != 2 or shape[1] < 128:
        yield name, "BF16", list(shape)
    else:
        yield name, "F8_E4M3", list(shape)
        yield f"{name}_scale_inv", "F32", [-(-size // 128) for size in shape]


def write_large(folder: Path, quantised: bool = False) -> int:
    """A checkpoint of zeros as a sparse file, so that the test needs no disk; returns its bytes."""
    extra = {"quantization_config": BLOCKS} if quantised else {}
    (folder / "config.json").write_text(json.dumps(CONFIG | extra))
    header, offset = {}, 0
    sources = checkpoint_sources(parse_model_config(CONFIG)).values()
    for source in sources:
        for name, dtype, shape in parts_of(source.keys[0], source.shape, quantised):
            end = offset + BYTES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return offset


def anonymous_bytes(folder: Path, rank: int, size: int) -> tuple[int, int]:
    """By how much loading raises a process's anonymous memory at most, and its weights' bytes."""
    command = [sys.executable, "-c", RANK, str(folder), str(rank), str(size)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    kib, weights = result.stdout.split()
    return 1024 * int(kib), int(weights)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_rank_of_two_needs_half_the_memory(tmp_path):
    stored = write_large(tmp_path)
    assert stored > 1e9
    whole, all_weights = anonymous_bytes(tmp_path, 0, 1)
    halves = [anonymous_bytes(tmp_path, rank, 2) for rank in range(2)]
    assert all_weights == 2 * stored, "bfloat16 in the file, float32 in memory"
    for peak, _ in halves:
        assert peak <= 0.55 * whole, (peak, whole)
    # Beside its weights a process holds no copies of them.
    for peak, weights in [(whole, all_weights), *halves]:
        assert peak - weights < 50e6, (peak, weights)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_of_quantised_weights_a_part_is_widened_at_a_time(tmp_path):
    """16 MiB in float32: half of out_proj's columns, or of the rows of a band of in_proj."""
    assert write_large(tmp_path, quantised=True) < 0.7e9
    for rank in range(2):
        peak, weights = anonymous_bytes(tmp_path, rank, 2)
        assert peak - weights < 100e6, (peak, weights)
