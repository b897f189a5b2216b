"""Storing a step's keys and values into pages: the definition."""

from torch import Tensor


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> None:
    """`keys[places[t]] = k[t]` and `values[places[t]] = v[t]` for each row.

    Args:
        k, v: `[T, heads, E]`; rows contiguous, and may be apart.
        keys, values: `[n_places, heads, E]`, contiguous, in k's dtype: all pages end to end.
        places: int64 `[T]`, where each row goes; all different.
    """
    for t, place in enumerate(places.tolist()):
        keys[place] = k[t]
        values[place] = v[t]
