"""What ranks tell each other through a torch store, before they have a group."""

from datetime import timedelta
from typing import Any

from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import TensorParallel


def exchange(tp: TensorParallel, store: Any, name: str, own: str, timeout_s: float) -> list[str]:
    """What every rank says about `name`, in rank order; each calls with its own.

    Raises:
        RankFailure: if a rank does not say it within `timeout_s`.
    """
    store.set(f"{name}/{tp.rank}", own)
    keys = [f"{name}/{rank}" for rank in range(tp.size)]
    wait_for(store, keys, timeout_s)
    return [store.get(key).decode() for key in keys]


def wait_for(store: Any, keys: list[str], timeout_s: float) -> None:
    """Return when the store has all the keys.

    Raises:
        RankFailure: if it has not after `timeout_s`.
    """
    try:
        store.wait(keys, timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise RankFailure(
            f"a rank of this job did not come within {timeout_s:g} s ({error})"
        ) from error
