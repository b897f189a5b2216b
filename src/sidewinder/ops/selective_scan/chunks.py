"""How GPUs cut a step's scans: so that all schedulers have the same work, or not at all."""

from functools import lru_cache

from sidewinder.ops import tuning

SCHEDULERS = 4
"""Of a multiprocessor."""
REGISTERS = {128: 168, 64: 128}
"""That a thread of prefill may use, by channels of its warp, for up to `FITTED_STATES` states: as
few as do without spilling in the loop over tokens, or nearly. Left alone the compiler takes up to
245, and fewer warps fit."""
FITTED_STATES, MOST_REGISTERS = 16, 255
CUT_BLOCK, UNCUT_BLOCK = 128, 64
"""Channels of a warp. Wider ones issue less per channel; narrower ones leave fewer schedulers idle,
and are sooner done with a token."""

LEAST_CHUNK = 64
"""Shorter chunks pass on more states than they save time."""
CANDIDATES: tuple[tuning.Config, ...] = tuple(
    {"warps": warps, "block_d": block, "num_warps": 1}
    for block in (CUT_BLOCK, UNCUT_BLOCK)
    for warps in (3, 2, 1, 6, 9, 0)
)
"""`warps`: that every scheduler gets in each pass; 0 does not cut."""

RESIDENT = {128: 3, 64: 4}
"""Warps of a scheduler whose registers fit at once."""
CUT_CYCLES, UNCUT_CYCLES = (544, 608), (352,)
"""Of a warp's token in `chunk_ends` and `finish` (`CUT_BLOCK`), and in `finish` (`UNCUT_BLOCK`), as
counted (`tools/kernel_instructions.py`)."""
WAITING_CYCLES = 250
"""Of a token of as many warps as are resident, in which each waits for its own results: assumed."""
HANDOVER_CYCLES, STATE_CYCLES = 20_000, 0.15
"""Of two more launches and their waiting; of a channel's states of one chunk, which are moved four
times: at an H100's bandwidth."""


def chunk_of(
    config: tuning.Config, lengths: tuple[int, ...], channels: int, multiprocessors: int
) -> int:
    """Tokens of a chunk of sequences of these lengths; those of the longest if nothing is cut.

    All programs take equally long, so a scheduler with one more than the others is waited for.
    """
    if not config["warps"]:
        return max(lengths)
    blocks = -(-channels // config["block_d"])
    chunks = max(1, config["warps"] * SCHEDULERS * multiprocessors // blocks)
    return max(-(-sum(lengths) // chunks), LEAST_CHUNK)


@lru_cache(maxsize=64)
def candidates(
    lengths: tuple[int, ...], channels: int, multiprocessors: int
) -> tuple[tuning.Config, ...]:
    """For a step's sequences of these lengths, the best guess first.

    One long prompt is cut: both passes over chunks end sooner than one over all of it. Prompts that
    fill the card together are not: one pass takes half as long as two.
    """

    def cycles(config: tuning.Config) -> float:
        block = config["block_d"]
        if block != (CUT_BLOCK if config["warps"] else UNCUT_BLOCK):
            return float("inf")  # For tuning only.
        chunk = chunk_of(config, lengths, channels, multiprocessors)
        n_chunks = sum(-(-length // chunk) for length in lengths)
        busiest = -(-(-(-channels // block) * n_chunks) // (SCHEDULERS * multiprocessors))
        passes = CUT_CYCLES if config["warps"] else UNCUT_CYCLES
        waiting = WAITING_CYCLES * -(-busiest // RESIDENT[block])
        token = sum(each * busiest + waiting for each in passes)
        handed_over = HANDOVER_CYCLES + STATE_CYCLES * n_chunks * channels
        return chunk * token + handed_over * (len(passes) - 1)

    return tuple(sorted(CANDIDATES, key=cycles))
