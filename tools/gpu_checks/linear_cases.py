"""Products with matrices that are timed: in the model's dtype, and in int8 and int4."""

from collections.abc import Callable, Iterator

from gpu_checks.case import Case, integer_weight, normal
from gpu_checks.context import DECODES, PREFILL, Context
from sidewinder.bench.roofline import model_work
from sidewinder.config import ModelConfig
from sidewinder.ops.linear import linear
from sidewinder.quantise import HEAD_BITS, rounded_bytes


def linear_cases(context: Context, config: ModelConfig, tokens: int) -> Iterator[Case]:
    """One row and several by every matrix that a decode step reads, the logits' too; many by the
    widest."""
    work = model_work(config, context.dtype.itemsize)
    shapes = {(out, inner) for out, inner, _ in work.gemms}
    shapes |= {(config.vocab_size, config.d_model)}
    widest = (2 * config.d_inner, config.d_model)
    for out, inner in sorted(shapes, reverse=True):
        for rows in DECODES:
            yield linear_case(context, rows, out, inner)
    yield linear_case(context, tokens, *widest)


def linear_case(context: Context, rows: int, out: int, inner: int) -> Case:
    def make() -> Callable[[], object]:
        weight, x = normal(context, out, inner), normal(context, rows, inner)
        return lambda: linear(x, weight)

    moved = (out * inner + rows * (inner + out)) * context.dtype.itemsize
    kind, many = "memory" if rows in DECODES else "gemm", "" if rows == 1 else "s"
    return Case(kind, f"{rows} row{many} by {out} x {inner}", make, moved, 2.0 * rows * out * inner)


def integer_cases(context: Context, config: ModelConfig, bits: int) -> Iterator[Case]:
    """The large matrices in so many bits, by one row and several; the widest, by some and by many.
    The head is in int8 always.

    The projection takes them to be as fast as others of their bytes, and these will say.
    """
    widest = (2 * config.d_inner, config.d_model)
    shapes = (widest, (config.d_model, config.d_inner))
    if bits == HEAD_BITS:
        shapes = ((config.vocab_size, config.d_model), *shapes)
    for shape in shapes:
        for rows in DECODES:
            yield integer_case(context, bits, rows, *shape)
    for rows in (context.pick(256, 5), context.pick(PREFILL, 24)):
        yield integer_case(context, bits, rows, *widest)


def integer_case(context: Context, bits: int, rows: int, out: int, inner: int) -> Case:
    def make() -> Callable[[], object]:
        weight, x = integer_weight(context, bits, out, inner), normal(context, rows, inner)
        return lambda: linear(x, weight)

    moved = rounded_bytes((out, inner), bits)
    moved += rows * (inner + out) * context.dtype.itemsize
    name = f"int{bits}, {rows} row{'' if rows == 1 else 's'} by {out} x {inner}"
    return Case(f"int{bits}", name, make, moved, 2.0 * rows * out * inner)
