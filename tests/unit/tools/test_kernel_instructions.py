"""The counted instructions in docs/kernels.md are those of the committed result."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernel_instructions import RESULT, loops, operation, table
from page_blocks import fill

ROOT = Path(__file__).parents[3]


def test_the_table_is_the_results():
    rows = json.loads((ROOT / RESULT).read_text())["rows"]
    page = (ROOT / "docs/kernels.md").read_text()
    assert fill(page, "scan", table(rows)) == page, "run tools/kernel_instructions.py"


def test_loops_are_what_backward_jumps_enclose():
    lines = [
        "MOV R1, R2", ".L_x_0", "@!P0 MUFU.EX2 R3, R3", "FFMA R1, R2, R3, R4", "@P1 BRA `(.L_x_0)",
        "@P2 BRA `(.L_x_1)", "EXIT", ".L_x_1", "BRA `(.L_x_1)",
    ]  # fmt: skip
    bodies = list(loops(lines))
    assert [len(body) for body in bodies] == [3, 1]
    assert [operation(each) for each in bodies[0]] == ["MUFU", "FFMA", "BRA"]
