"""What several Triton kernels share: activations, and finding a program's place in a batch."""

import triton
import triton.language as tl

from sidewinder.ops.launching import is_interpreting

LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(is_interpreting())
"""Triton's interpreter truncates where a GPU rounds to bfloat16, takes that format's subnormal
numbers for others, and cannot multiply matrices of it."""


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """What a kernel that was launched with `launching.early()` does before it touches anything that
    the step's kernels before it write: lets the next one's programs start, and waits for those
    before it to end.

    Weights may be asked for before it. So may slots, and what they hold, where
    `launching.early_in_slots()` allowed it. Stores come after it.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def nearest_bf16(x):
    """float32 `x` rounded to a bfloat16's precision, to nearest even; still float32."""
    bits = x.to(tl.uint32, bitcast=True)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(x == x, kept.to(tl.float32, bitcast=True), x)


@triton.jit
def rounded(x, kind: tl.constexpr):
    """float32 `x` in the dtype `kind`, to nearest even."""
    if INTERPRETED and kind == tl.bfloat16:
        high_half = nearest_bf16(x).to(tl.int32, bitcast=True) >> 16
        x = high_half.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(kind)


@triton.jit
def widened(half):
    """The float32 whose high half these 16 bits are."""
    return (half.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def exact(x):
    """`x` in float32, subnormal numbers too."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        x = widened(x.to(tl.int16, bitcast=True))
    return x.to(tl.float32)


@triton.jit
def from_int8(x):
    """int8 `x` in float32, exactly.

    Four at a time: a byte, its sign turned, is the end of a float32's mantissa, whose value is then
    2^23 + 128 + x. (A GPU's own conversions of bytes are slower than weights arrive.)
    """
    if INTERPRETED:
        return x.to(tl.float32)
    shifted = tl.inline_asm_elementwise(
        """
        {
        .reg .b32 turned, high;
        xor.b32 turned, $4, 0x80808080;
        mov.b32 high, 0x4B000000;
        prmt.b32 $0, turned, high, 0x7440;
        prmt.b32 $1, turned, high, 0x7441;
        prmt.b32 $2, turned, high, 0x7442;
        prmt.b32 $3, turned, high, 0x7443;
        }
        """,
        "=f,=f,=f,=f,r", [x], dtype=tl.float32, is_pure=True, pack=4,
    )  # fmt: skip
    return shifted - 8388736.0


INT4_AS_FLOATS = tl.constexpr(
    """
    {
    .reg .b32 upper;
    shr.u32 upper, $8, 12;
    lop3.b32 $0, $8, 0x0000000F, 0x4B000000, 0xEA;
    lop3.b32 $4, $8, 0x000000F0, 0x49000000, 0xEA;
    lop3.b32 $1, $8, 0x00000F00, 0x47000000, 0xEA;
    lop3.b32 $5, $8, 0x0000F000, 0x45000000, 0xEA;
    lop3.b32 $2, $8, 0x000F0000, 0x43000000, 0xEA;
    lop3.b32 $6, upper, 0x00000F00, 0x47000000, 0xEA;
    lop3.b32 $3, upper, 0x0000F000, 0x45000000, 0xEA;
    lop3.b32 $7, upper, 0x000F0000, 0x43000000, 0xEA;
    sub.f32 $0, $0, 0f4B000008;
    sub.f32 $4, $4, 0f49000080;
    sub.f32 $1, $1, 0f47000800;
    sub.f32 $5, $5, 0f45008000;
    sub.f32 $2, $2, 0f43080000;
    sub.f32 $6, $6, 0f47000800;
    sub.f32 $3, $3, 0f45008000;
    sub.f32 $7, $7, 0f43080000;
    }
    """
)
"""Of four bytes: each of the eight numbers, where it lies, becomes part of the mantissa
(`a & b | c`) of 2^23, 2^19, 2^15, 2^11 or 2^7, whichever it then adds itself to."""


def _int4_as_pairs(kind: str, magic: int, one: int, offset: int) -> tl.constexpr:
    """The same by pairs in 16 bits: `magic` plus a number, and that plus `offset`, are exact."""
    assembly = """
    {
    .reg .b32 first, second, one, offset;
    mov.b32 one, ONE;
    mov.b32 offset, OFFSET;
    prmt.b32 first, $4, 0, 0x4140;
    prmt.b32 second, $4, 0, 0x4342;
    lop3.b32 $0, first, 0x000F000F, MAGIC, 0xEA;
    lop3.b32 $1, second, 0x000F000F, MAGIC, 0xEA;
    shr.u32 first, first, 4;
    shr.u32 second, second, 4;
    lop3.b32 $2, first, 0x000F000F, MAGIC, 0xEA;
    lop3.b32 $3, second, 0x000F000F, MAGIC, 0xEA;
    fma.rn.KIND $0, $0, one, offset;
    fma.rn.KIND $1, $1, one, offset;
    fma.rn.KIND $2, $2, one, offset;
    fma.rn.KIND $3, $3, one, offset;
    }
    """
    for word, number in (("ONE", one), ("OFFSET", offset), ("MAGIC", magic)):
        assembly = assembly.replace(word, f"{number * 0x10001:#010x}")
    return tl.constexpr(assembly.replace("KIND", kind))


INT4_AS_BF16 = _int4_as_pairs("bf16x2", magic=0x4300, one=0x3F80, offset=0xC308)
INT4_AS_F16 = _int4_as_pairs("f16x2", magic=0x6400, one=0x3C00, offset=0xE408)


@triton.jit
def from_int4(x, kind: tl.constexpr):
    """The lower and the upper halves of bytes `x`, each less 8, exactly: two tensors in `kind`,
    float32, bfloat16 or float16.

    Four bytes at a time, no conversion by hardware, which would be slower than weights arrive.
    """
    if INTERPRETED:
        halves = (x & 15).to(tl.float32) - 8.0, (x >> 4).to(tl.float32) - 8.0
    elif kind == tl.float32:
        halves = tl.inline_asm_elementwise(
            INT4_AS_FLOATS, "=&f,=&f,=&f,=&f,=&f,=&f,=&f,=&f,r", [x],
            dtype=(tl.float32, tl.float32), is_pure=True, pack=4,
        )  # fmt: skip
    elif kind == tl.bfloat16:
        halves = tl.inline_asm_elementwise(
            INT4_AS_BF16, "=&r,=&r,=&r,=&r,r", [x],
            dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        halves = tl.inline_asm_elementwise(
            INT4_AS_F16, "=&r,=&r,=&r,=&r,r", [x],
            dtype=(tl.float16, tl.float16), is_pure=True, pack=4,
        )  # fmt: skip
    return halves


@triton.jit
def columns(tile, N: tl.constexpr):
    """The columns of a tile in N equal parts side by side, a power of two, as a tuple. Nothing
    moves: threads then hold a part's elements as its user wants them."""
    if N == 1:
        parts = (tile,)
    else:
        halves = tl.reshape(tile, [tile.shape[0], 2, tile.shape[1] // 2])
        left, right = tl.split(tl.permute(halves, (0, 2, 1)))
        parts = columns(left, N // 2) + columns(right, N // 2)
    return parts


@triton.jit
def put(at, x, mask):
    """Store float32 `x`, rounded to nearest even."""
    tl.store(at, rounded(x, at.dtype.element_ty), mask=mask)


@triton.jit
def product(a, b, kind: tl.constexpr):
    """Matrix product of `a` and `b` rounded to `kind`, with float32 sums; never TF32."""
    a, b = rounded(a.to(tl.float32), kind), rounded(b.to(tl.float32), kind)
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def exp2(x):
    """`2^x` of float32, one instruction; results below 2^-126 become zero."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def reciprocal(x):
    """`1 / x` of float32, one instruction, within one unit of the last place."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def softplus(x):
    """`log(1 + exp(x))` in float32, precise for every x; NaN stays NaN.

    With e = exp(-|x|) it is max(x, 0) + log1p(e), and log1p(e) / e on [0, 1] is a polynomial within
    3e-8. (A GPU's fast logarithm loses small results, and special functions are what scans lack.)
    """
    e = exp2(tl.abs(x) * -LOG2_E)
    series = 0.0052326550
    series = series * e - 0.029505081
    series = series * e + 0.078225695
    series = series * e - 0.13663223
    series = series * e + 0.19105996
    series = series * e - 0.24842979
    series = series * e + 0.33319098
    series = series * e - 0.49999493
    series = series * e + 0.99999994
    return tl.where(x > 0.0, x, 0.0) + e * series


@triton.jit
def silu(x):
    """`x * sigmoid(x)`."""
    return x * reciprocal(1.0 + exp2(x * -LOG2_E))


@triton.jit
def below_if(index, limit, condition):
    """The mask `index < limit` where the scalar `condition` holds, else nothing.

    (`mask & condition` with a scalar has the wrong type in Triton's interpreter.)
    """
    return index < tl.where(condition, limit, 0)


@triton.jit
def slot_to_leave(slots, row, end):
    """The slot of a row of a chain that ends before row `end`, and whether the state behind the row
    is to be left there: not if the next row leaves its own there (those that fill a bucket up)."""
    slot = tl.load(slots + row)
    return slot, slot != tl.load(slots + row + 1, mask=row + 1 < end, other=-1)


@triton.jit
def find_chunk(cu_seqlens, first, n_seqs, number, chunk, BLOCK_S: tl.constexpr):
    """The sequence that the `number`-th chunk belongs to, and how many of its chunks come before.

    Sequences from `first` up to `n_seqs` are cut into chunks of `chunk` tokens, each from its own
    start. A number beyond the last chunk gives `n_seqs`. BLOCK_S is at least `n_seqs - first`.
    """
    index = first + tl.arange(0, BLOCK_S)
    exists = index < n_seqs
    begin = tl.load(cu_seqlens + index, mask=exists, other=0)
    end = tl.load(cu_seqlens + index + 1, mask=exists, other=0)
    n_chunks = (end - begin + chunk - 1) // chunk
    earlier = exists & (tl.cumsum(n_chunks, 0) <= number)
    seq = first + tl.sum(earlier.to(tl.int32), 0)
    return seq, number - tl.sum(tl.where(earlier, n_chunks, 0), 0)


@triton.jit
def chunks_before(cu_seqlens, first, seq, chunk, BLOCK_S: tl.constexpr):
    """How many chunks the sequences from `first` up to `seq` have."""
    index = first + tl.arange(0, BLOCK_S)
    earlier = index < seq
    begin = tl.load(cu_seqlens + index, mask=earlier, other=0)
    end = tl.load(cu_seqlens + index + 1, mask=earlier, other=0)
    return tl.sum((end - begin + chunk - 1) // chunk, 0)
