"""Triton kernel that stores keys and values into pages; `triton.py` launches it."""

import triton
import triton.language as tl


@triton.jit
def store_rows(k, k_row, v, v_row, keys, values, places, width, BLOCK: tl.constexpr):
    """BLOCK numbers of one row of both.

    Floor: bytes, those of k and v, twice.
    """
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = c < width
    at = tl.load(places + row) * width + c
    key = tl.load(k + row * k_row + c, mask=used)
    value = tl.load(v + row * v_row + c, mask=used)
    tl.store(keys + at, key, mask=used)
    tl.store(values + at, value, mask=used)
