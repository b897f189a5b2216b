"""Where a prompt's prefill stops to keep the state.

A stop costs one more step and the memory of one state, so there are few, where later prompts are
likely to part from this one:

- a grid, so that a shared beginning is found whoever comes first. Its spacing grows with the
  position (at most a quarter of it is run again), so a prompt of a million tokens has some forty;
- shortly before the end, where prompts with a long common beginning and short questions part, and
  where the same prompt resumes when it comes again (its last token must run for its logits);
- the point up to which the tree knows the prompt (or a waiting one shares it): it has proven that
  it comes again;
- the end itself, which costs no step.
"""

TAIL = 32
"""Alignment of the stops before the end."""
SHORT_TAIL_FROM = 64
"""Prompts with fewer tokens to run make no stop before the end: one step more would cost more."""
LONG_TAIL = 128
LONG_TAIL_FROM = 1024
"""From so many tokens to run on, there is also a stop `LONG_TAIL` before the end."""
MIN_SHARED = 32
"""Fewer shared tokens than this are cheaper to run again than to stop for."""
FRACTION = 4
"""The grid's spacing is at most this fraction of the position, once it grows."""


def boundaries(start: int, length: int, interval: int, shared: int = 0) -> set[int]:
    """Positions in `(start, length]` after which the state is kept.

    Args:
        start: tokens already in the state.
        length: of the prompt.
        interval: the grid's spacing at the beginning.
        shared: leading tokens that are known to be shared with another prompt.
    """
    found = {length}
    position = next_on_grid(start, interval)
    while position < length:
        found.add(position)
        position = next_on_grid(position, interval)
    tails = []
    if length - start > SHORT_TAIL_FROM:
        tails.append((length - 1) // TAIL * TAIL)
    if length - start > LONG_TAIL_FROM:
        tails.append((length - LONG_TAIL) // TAIL * TAIL)
    if shared - start >= MIN_SHARED:
        tails.append(min(shared, length - 1))
    return found | {position for position in tails if position > start}


def next_on_grid(position: int, interval: int) -> int:
    """The first grid position after `position`."""
    doublings = max(0, (position // (FRACTION * interval)).bit_length() - 1)
    spacing = interval << doublings
    return (position // spacing + 1) * spacing
