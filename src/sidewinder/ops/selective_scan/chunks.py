"""How GPUs cut Mamba-1's scan: into chunks that give all schedulers the same work."""

from sidewinder.ops.launching import TYPICAL_MULTIPROCESSORS

SCHEDULERS = 4
"""Of a multiprocessor."""
REGISTERS = {128: 168, 64: 128}
"""That a thread of prefill may use, by channels of its warp: as few as do without spilling in the
loop over tokens, or nearly. Left alone the compiler takes up to 230, and fewer warps fit."""
MOST_REGISTERS = 255
"""That a thread can have."""
WARPS = {128: (3, 2, 1, 6, 9, 12, 15), 64: (4, 2, 8)}
"""Warps that a scheduler gets, by channels of a warp: as many as its registers hold (3, or 4) hide
each other's waiting; a narrow rank has work for fewer, a wide one for several times as many."""

WHOLE = 512
"""Sequences of up to so many tokens are not cut. Alone, one takes no longer: in one pass, token by
token, it computes half as much. In a batch it takes about two thirds of the time."""
LEAST_CHUNK, USUAL_CHUNK, MOST_CHUNK = 64, 256, WHOLE
"""Shorter chunks pass on more states than they save time."""
TYPICAL_TOKENS = 8192
"""Of a step of prefill."""


def even_chunk(channels: int, block: int, warps: int, multiprocessors: int) -> int:
    """Tokens of a chunk with which `TYPICAL_TOKENS` make so many warps for every scheduler."""
    blocks = -(-channels // block)
    chunks = max(1, warps * SCHEDULERS * multiprocessors // blocks)
    return min(max(-(-TYPICAL_TOKENS // chunks), LEAST_CHUNK), MOST_CHUNK)


def chunk_sizes(
    channels: int, multiprocessors: int = TYPICAL_MULTIPROCESSORS
) -> list[tuple[int, int]]:
    """Tokens of a chunk and channels of a warp, best guess first.

    All programs take equally long, so a scheduler with one more than the others is waited for.
    Lengths depend on width and card alone, so that a sequence's results do not depend on the batch
    around it.
    """
    sizes = [
        (even_chunk(channels, block, warps, multiprocessors), block)
        for block, numbers in WARPS.items()  # Wider warps issue less per channel.
        for warps in numbers
    ]
    sizes.sort(key=lambda each: not LEAST_CHUNK < each[0] <= USUAL_CHUNK)
    return list(dict.fromkeys(sizes))
