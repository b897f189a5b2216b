"""A rank holds its own share of the weights, and nothing more, while it loads."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from sidewinder.checkpoint.names import checkpoint_sources
from sidewinder.config import load_model_config

CONFIG = {
    "model_type": "mamba", "vocab_size": 16384, "hidden_size": 2048, "num_hidden_layers": 18,
    "state_size": 16, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip

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

watcher = threading.Thread(target=watch)
watcher.start()
weights = load_shard(folder, load_model_config(folder), TensorParallel(rank, size), torch.float32)
done.set()
watcher.join()
print(max(peak[0], anonymous_kib()) - before, sum(value.nbytes for value in weights.values()))
"""


def write_large(folder: Path) -> int:
    """A checkpoint of zeros as a sparse file, so that the test needs no disk; returns its bytes."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, offset = {}, 0
    for source in checkpoint_sources(load_model_config(folder)).values():
        end = offset + 2 * math.prod(source.shape)
        header[source.keys[0]] = {
            "dtype": "BF16", "shape": source.shape, "data_offsets": [offset, end]}  # fmt: skip
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
