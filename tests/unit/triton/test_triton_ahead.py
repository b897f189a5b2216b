"""Every kernel compiles for GPUs of two generations, on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton_cases
from ahead_cases import LARGE_PROMPTS

KERNELS = {
    "causal_conv1d": ["prefill", "update", "update_chains"],
    "selective_scan": ["chunk_ends", "pass_states", "finish", "update", "update_chains"],
    "ssd_scan": [
        *("steps", "chunk_states", "pass_states", "scores", "outputs"),
        *("update", "update_chains"),
    ],
    "linear": [
        *("row_product", "few_rows_product"),
        *("integer_row_product", "integer_product", "dequantise"),
    ],
    "experts": [
        *("pair_inner", "pair_outer", "arrange", "group_inner", "group_outer"),
        *("integer_pair_inner", "integer_pair_outer"),
        *("integer_group_inner", "integer_group_outer"),
    ],
    "projected_scan": ["update", "update_chains"],
    "rms_norm": ["normalise"],
    "rotary": ["turn"],
    "concat_rms_norm": ["normalise"],
    "gated_activation": ["gate_by"],
    "gated_rms_norm": ["normalise"],
    "gated_squares": ["gate"],
    "with_scalar": ["join"],
    "scaled_rows": ["scale"],
    "codec": ["encode", "reduce", "decode", "decode_normalise"],
    "paged_attention": ["attend_split", "join_splits"],
    "prompt_attention": ["weigh", "average"],
    "store_kv": ["store_rows"],
    "add_rows": ["add"],
    "route": ["score_experts", "choose_experts"],
}
SHARED_BYTES, HOPPERS_BYTES = 99 << 10, 227 << 10
"""What a program may use on every GPU from Ampere on, of which workstation cards have least; and on
Hopper."""
NARROW_COPIES = 16
"""Most copies of four bytes a thread into shared memory. Where the compiler cannot see that rows
are aligned it makes more, scattered: Mamba-2's `outputs` had 36, and waited for them."""


@pytest.mark.slow
def test_every_kernel_compiles_for_ampere_and_hopper():
    script = Path(triton_cases.__file__).with_name("ahead.py")
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=1200
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout.splitlines()[-1])
    compiled = {tuple(name.split()[:2]) for name in facts}
    for operator, names in KERNELS.items():
        for capability in ("sm_80", "sm_90"):
            for name in names:
                assert (f"{operator}.{name}", capability) in compiled
    large = {name: fact["shared"] for name, fact in facts.items() if fact["shared"] > SHARED_BYTES}
    assert all(name.endswith(LARGE_PROMPTS) for name in large), large
    assert max(large.values()) <= HOPPERS_BYTES
    narrow = [name for name, fact in facts.items() if fact["narrow"] > NARROW_COPIES]
    assert [name for name in narrow if not name.endswith("odd sizes")] == []
    prefill = [fact for name, fact in facts.items() if name.endswith("scan of rows eight apart")]
    assert len(prefill) == 4, "three kernels of prompts, one of single tokens"
    by_bytes = [name for name, fact in facts.items() if "int" in name and fact["loads of a byte"]]
    assert by_bytes == [], "sixteen bytes of weights at a time"
    spilled = {name: fact["spilled"] for name, fact in facts.items() if fact["spilled"]}
    assert [name for name in spilled if not name.endswith("f32")] == [], "by matrix units"
    loads = {name: fact["loads of two bytes"] for name, fact in facts.items()}
    for kernel in ("chunk_ends", "finish", "update"):
        assert loads[f"selective_scan.{kernel} sm_90 scan of rows eight apart"] == 0, "not ahead"
