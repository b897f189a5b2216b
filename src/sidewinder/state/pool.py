"""The state pool: conv and SSM state of all layers in numbered slots, and a hybrid's KV pages."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.config import ModelConfig
from sidewinder.memory import empty
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.kv import PagedKV
from sidewinder.state.spec import PAGE_SIZE, StateSpec

POISON_VARIABLE = "SIDEWINDER_POISON"


@dataclass(frozen=True)
class LayerState:
    """One layer's state of all slots: `conv` `[n_slots, K-1, C_local]`, `ssm` `[n_slots, ...]`."""

    conv: Tensor
    ssm: Tensor


@dataclass(frozen=True)
class StateSnapshot:
    """A copy of one slot's recurrent state, in this rank's channels.

    Attributes:
        conv: `[n_layers, K-1, C_local]`.
        ssm: `[n_layers, N, D]`, Mamba-2 `[n_layers, H_local, N, P]`.
    """

    conv: Tensor
    ssm: Tensor

    @property
    def n_bytes(self) -> int:
        return self.conv.nbytes + self.ssm.nbytes


class StatePool:
    """Storage for `n_slots` sequences on one rank, allocated once.

    A slot's content is undefined until a fresh sequence has run in it: operators treat a fresh
    sequence's state as zero, so nothing has to be cleared when a slot changes hands.

    Args:
        config: the model.
        dims: this rank's shares.
        n_slots: how many sequences fit at once.
        dtype: of the convolution state and of keys and values; the model's.
        device: where the tensors live.
        n_pages: hybrids: number of KV pages.
        page_size: hybrids: tokens per page.
        state_dtype: of the SSM state, float32 or bfloat16.
        poison: fill what is undefined with NaN (at the start, and what sequences enter), so that a
            read of stale state shows; by default the environment variable SIDEWINDER_POISON.

    Raises:
        ValueError: for `n_slots` below 1, or a hybrid without pages.
    """

    def __init__(
        self,
        config: ModelConfig,
        dims: LocalDims,
        n_slots: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        n_pages: int = 0,
        page_size: int = PAGE_SIZE,
        state_dtype: torch.dtype = torch.float32,
        poison: bool | None = None,
    ) -> None:
        if n_slots < 1:
            raise ValueError(f"a state pool of {n_slots} slots holds no sequence; use 1 or more")
        spec = StateSpec.of(config, dims)
        if spec.n_invocations and n_pages < 1:
            raise ValueError(
                f"{config.family} needs KV pages for its attention, not n_pages={n_pages}"
            )
        self.spec = spec
        self.poison = os.environ.get(POISON_VARIABLE) == "1" if poison is None else poison
        self.conv = empty((spec.n_layers, n_slots, *spec.conv), dtype, device)
        self.ssm = empty((spec.n_layers, n_slots, *spec.ssm), state_dtype, device)
        self.kv: PagedKV | None = None
        if spec.n_invocations:
            self.kv = PagedKV(spec, n_pages, page_size, dtype, device, self.poison)
        if self.poison:
            self.conv.fill_(torch.nan)
            self.ssm.fill_(torch.nan)
        self._layers = [LayerState(self.conv[i], self.ssm[i]) for i in range(spec.n_layers)]

    def layer(self, index: int) -> LayerState:
        """The state of layer `index`, all slots."""
        return self._layers[index]

    def snapshot(self, slot: int, device: torch.device | str | None = None) -> StateSnapshot:
        """Copy the slot's recurrent state, onto `device` (default: the pool's own)."""
        target = self.conv.device if device is None else device
        return StateSnapshot(
            conv=self.conv[:, slot].to(target, copy=True),
            ssm=self.ssm[:, slot].to(target, copy=True),
        )

    def meta_snapshot(self) -> StateSnapshot:
        """Shapes and dtypes of a snapshot, without data."""
        return StateSnapshot(self.conv[:, 0].to("meta"), self.ssm[:, 0].to("meta"))

    def restore(self, slot: int, snapshot: StateSnapshot) -> None:
        """Load a snapshot, taken on this rank of a pool of the same model, into `slot`."""
        assert snapshot.ssm.shape == self.ssm[:, slot].shape, "a snapshot of another model or rank"
        self.conv[:, slot] = snapshot.conv.to(self.conv.device)
        self.ssm[:, slot] = snapshot.ssm.to(self.ssm.device)

    def poison_entered(self, slot: int, start: int, pages: Sequence[int]) -> None:
        """Fill with NaN what a sequence enters that has `start` tokens: its slot, and new pages."""
        if start == 0:
            self.conv[:, slot] = torch.nan
            self.ssm[:, slot] = torch.nan
        if self.kv is not None:
            entered = list(pages[-(-start // self.kv.page_size) :])
            self.kv.k[:, entered] = torch.nan
            self.kv.v[:, entered] = torch.nan
