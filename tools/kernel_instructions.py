"""Count the instructions of the selective scan's inner loops, compiled for a GPU that is not here.

    .venv/bin/python tools/kernel_instructions.py    # benchmarks/results/scan-instructions.json

Writes the table of docs/kernels.md, too. A multiprocessor's quarter issues one instruction of a
warp a cycle; a special function (MUFU) of a warp keeps its four units busy for 8. So neither the
sum of the issued ones nor 8 times the special ones can take less.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "triton"))

from ahead import source_of  # noqa: E402
from ahead_cases import scan  # noqa: E402
from page_blocks import fill  # noqa: E402

from sidewinder.ops import tuning  # noqa: E402
from sidewinder.ops.launching import Launch, recording  # noqa: E402

PROGRAMS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LANES, SPECIAL_CYCLES = 32, 8
BLOCKS = (64, 128)
KERNELS = ("chunk_ends", "finish")
RESULT = Path("benchmarks/results/scan-instructions.json")


def launches(block_d: int) -> list[Launch]:
    """The two passes over chunks, with bfloat16 activations, float32 states and 16 of them."""
    config = {"block_d": block_d, "num_warps": 1, "chunk": 128}
    with tuning.overridden("scan_pipelined", **config), recording() as found:
        scan(torch.bfloat16)
    return [each for each in found if each.kernel.fn.__name__ in KERNELS]


def measured(launch: Launch, capability: int) -> dict[str, Any]:
    """Cycles that 32 channels of a token take at least, by what is issued and by special units."""
    target = GPUTarget("cuda", capability, LANES)
    built = triton.compile(source_of(launch), target=target, options=launch.options)
    block, code = launch.constants["BLOCK_D"], built.asm["cubin"]
    loop = max(loops(disassembled(code)), key=len)
    operations = collections.Counter(operation(each) for each in loop)
    special = sum(n for name, n in operations.items() if name == "MUFU")
    return {
        "kernel": launch.kernel.fn.__name__,
        "block_d": block,
        "registers": registers(code),
        "issued": len(loop) * LANES / block,
        "special": SPECIAL_CYCLES * special * LANES / block,
        "operations": dict(operations.most_common()),
    }


def registers(cubin: bytes) -> int:
    """Of a thread."""
    found = re.search(r"REG:(\d+)", shown(cubin, "cuobjdump", "-res-usage"))
    assert found is not None, "a compiled kernel says what it uses"
    return int(found.group(1))


def shown(cubin: bytes, program: str, option: str) -> str:
    """What one of the programs that come with Triton says about machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(PROGRAMS / program), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def disassembled(cubin: bytes) -> list[str]:
    """Labels and instructions, a line each."""
    text = shown(cubin, "nvdisasm", "-c")
    lines = (re.match(r"\s*(?:/\*[0-9a-f]+\*/\s+(.*?)\s*;|(\.L_\w+):)", line)
             for line in text.splitlines())  # fmt: skip
    return [line.group(1) or line.group(2) for line in lines if line]


def loops(lines: list[str]) -> Iterator[list[str]]:
    """Instructions between each backward jump and where it goes."""
    starts = {line: index for index, line in enumerate(lines) if line.startswith(".L_")}
    for index, line in enumerate(lines):
        jump = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        if jump and starts.get(jump.group(1), index) < index:
            body = lines[starts[jump.group(1)] : index + 1]
            yield [each for each in body if not each.startswith(".L_")]


def operation(instruction: str) -> str:
    """Its name without predicate and suffixes."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The figures of docs/kernels.md."""
    yield "| channels of a warp | pass | registers | issued | special units | at least |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        cycles = row["issued"], row["special"], max(row["issued"], row["special"])
        cells = " | ".join(f"{each:.0f}" for each in (row["registers"], *cycles))
        yield f"| {row['block_d']} | `{row['kernel']}` | {cells} |"


def main() -> None:
    """Compile, count and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90, help="90 is Hopper")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=Path("docs/kernels.md"))
    args = parser.parse_args()
    rows = [measured(each, args.capability) for block in BLOCKS for each in launches(block)]
    result = {"triton": triton.__version__, "capability": args.capability, "rows": rows}
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    args.page.write_text(fill(args.page.read_text(), "scan", table(rows)))


if __name__ == "__main__":
    main()
