"""How GPUs cut Mamba-1's scan: into chunks that fill the multiprocessors evenly."""

from sidewinder.ops.launching import TYPICAL_MULTIPROCESSORS

REGISTERS_OF_ALL = 1 << 16
"""Of a multiprocessor, from Ampere on."""
MOST_REGISTERS = 255
"""That a thread can have."""
REGISTERS = {128: 168, 64: 128}
"""That a thread of prefill may use, by channels of its warp: as few as do without spilling in the
loop over tokens, or nearly. Left alone the compiler takes up to 230, and fewer warps fit."""
RESIDENT = {block: REGISTERS_OF_ALL // (32 * each) for block, each in REGISTERS.items()}
"""Warps of prefill that a multiprocessor holds."""

WHOLE = 512
"""Sequences of up to so many tokens are not cut. Alone, one takes no longer: in one pass, token by
token, it computes half as much. In a batch it takes about two thirds of the time."""

LEAST_CHUNK, MOST_CHUNK = 128, WHOLE
"""Shorter chunks pass on more states than they save time."""

TYPICAL_TOKENS = 8192
"""Of a step of prefill."""


def even_chunk(channels: int, block: int, rounds: int, multiprocessors: int) -> int:
    """Tokens of a chunk with which `TYPICAL_TOKENS` fill all multiprocessors `rounds` times."""
    blocks = -(-channels // block)
    chunks = max(1, rounds * RESIDENT[block] * multiprocessors // blocks)
    return min(max(-(-TYPICAL_TOKENS // chunks), LEAST_CHUNK), MOST_CHUNK)


def chunk_sizes(
    channels: int, multiprocessors: int = TYPICAL_MULTIPROCESSORS
) -> list[tuple[int, int]]:
    """Tokens of a chunk and channels of a warp, best guess first.

    All programs take equally long, so a last round of few programs is lost time: cut evenly, the
    scan of 8,192 tokens and 5,120 channels took 4 to 6 % less on an H100 than in chunks of 128.
    Lengths depend on width and card alone, so that a sequence's results do not depend on the batch
    around it.
    """
    sizes = [
        (even_chunk(channels, block, rounds, multiprocessors), block)
        for block in (128, 64)  # Wider warps issue less per channel.
        for rounds in (1, 2, 3, 4)
    ]
    sizes.sort(key=lambda each: not LEAST_CHUNK < each[0] <= 2 * LEAST_CHUNK)
    return list(dict.fromkeys(sizes))
