"""A rank's kept states, and the operations on them that plans carry (see `ops`)."""

from collections.abc import Callable, Mapping, Sequence
from functools import singledispatchmethod
from pathlib import Path

from torch import Tensor

from sidewinder.config import ModelConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.state.cache.formats import decode, encode
from sidewinder.state.cache.layout import state_rules
from sidewinder.state.cache.ops import (
    Copy,
    Drop,
    Read,
    Restore,
    Save,
    StateOp,
    ToDevice,
    ToHost,
    Write,
)
from sidewinder.state.cache.parts import FAILURES, Place, read_part, write_part
from sidewinder.state.pool import StatePool

KEYS_AND_VALUES = ("k", "v")


class SnapshotStore:
    """Tensors of kept states by their number.

    A kept state's tensors never change: numbers may share them, and moving one makes new ones.

    Args:
        pool: slots and KV pages of this rank.
        config: the model.
        tp: which rank of how many.
        dtype: of stored states: "auto", "bfloat16" or "int8".
        agree: from this rank's flags to those that hold on all ranks; every rank calls.
    """

    def __init__(
        self,
        pool: StatePool,
        config: ModelConfig,
        tp: TensorParallel,
        dtype: str,
        agree: Callable[[Sequence[bool]], list[bool]],
    ) -> None:
        self._pool = pool
        self._rules = state_rules(config, tp.size)
        self._tp = tp
        self._dtype = dtype
        self._agree = agree
        self._place: Place | None = None
        self._states: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def open_disk(self, folder: str, fingerprint: str) -> None:
        """Where `Write` and `Read` go from now on."""
        self._place = Place(Path(folder), fingerprint)

    def n_bytes(self, snapshot: int) -> int:
        """Bytes of one kept state on this rank, without what is in pages."""
        return sum(tensor.nbytes for tensor in self._states[snapshot].values())

    def apply(self, ops: Sequence[StateOp]) -> dict[int, str]:
        """Do `ops` in their order.

        Returns:
            For reads and writes that failed on any rank: why, as far as this rank knows.
        """
        failures: dict[int, str] = {}
        tried: list[int] = []
        for op in ops:
            if isinstance(op, Read | Write):
                tried.append(op.snapshot)
            try:
                self._do(op)
            except FAILURES as error:
                if not isinstance(op, Read | Write):
                    raise
                failures[op.snapshot] = f"{type(error).__name__}: {error}"
        if not tried:
            return {}
        went_well = self._agree([snapshot not in failures for snapshot in tried])
        failed = [
            snapshot for snapshot, is_good in zip(tried, went_well, strict=True) if not is_good
        ]
        for op in ops:
            if isinstance(op, Read) and op.snapshot in failed:
                self._states.pop(op.snapshot, None)
        return {snapshot: failures.get(snapshot, "on another rank") for snapshot in failed}

    @singledispatchmethod
    def _do(self, op: StateOp) -> None:
        raise TypeError(f"unknown operation {op!r}")

    @_do.register
    def _save(self, op: Save) -> None:
        self._states[op.snapshot] = encode(self._pool.snapshot(op.slot), self._dtype)

    @_do.register
    def _restore(self, op: Restore) -> None:
        state, kv = self._states[op.snapshot], self._pool.kv
        self._pool.restore(op.slot, decode(state))
        if op.pages:
            assert kv is not None
            kv.fill(op.pages, state["k"], state["v"])
        if op.copied is not None:
            assert kv is not None
            kv.copy_page(*op.copied)

    @_do.register
    def _drop(self, op: Drop) -> None:
        del self._states[op.snapshot]

    @_do.register
    def _copy(self, op: Copy) -> None:
        self._states[op.snapshot] = self._states[op.source]

    @_do.register
    def _to_host(self, op: ToHost) -> None:
        whole = self._whole(op.snapshot, op.n_tokens, op.pages)
        self._states[op.snapshot] = {name: tensor.cpu() for name, tensor in whole.items()}

    @_do.register
    def _to_device(self, op: ToDevice) -> None:
        device = self._pool.conv.device
        self._states[op.snapshot] = {
            name: tensor.to(device)
            for name, tensor in self._states[op.snapshot].items()
            if name not in KEYS_AND_VALUES
        }

    @_do.register
    def _write(self, op: Write) -> None:
        assert self._place is not None
        whole = self._whole(op.snapshot, op.n_tokens, op.pages)
        write_part(self._place, op.key, whole, self._rules, self._tp)

    @_do.register
    def _read(self, op: Read) -> None:
        assert self._place is not None
        state = read_part(self._place, op.key, self._rules, self._tp)
        self._check(state, op)
        self._states[op.snapshot] = state

    def _whole(self, snapshot: int, n_tokens: int, pages: tuple[int, ...]) -> dict[str, Tensor]:
        """A state with its keys and values, if they are in `pages`."""
        state = self._states[snapshot]
        if not pages:
            return state
        assert self._pool.kv is not None
        k, v = self._pool.kv.gather(pages, n_tokens)
        return state | {"k": k, "v": v}

    def _check(self, state: Mapping[str, Tensor], op: Read) -> None:
        """Raise ValueError unless `state` fits this rank's pool."""
        found, expected = decode(state), self._pool.meta_snapshot()
        shapes = [found.conv.shape == expected.conv.shape, found.ssm.shape == expected.ssm.shape]
        if self._pool.kv is not None:
            like = self._pool.kv.shape_of(op.n_tokens)
            shapes += [state[name].shape == like for name in KEYS_AND_VALUES]
        if not all(shapes):
            raise ValueError(f"state {op.key} has other shapes than this model's")
