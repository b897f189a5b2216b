"""Shapes and bytes of a sequence's state on one rank; arithmetic only."""

from dataclasses import dataclass
from math import prod

import torch

from sidewinder.config import ModelConfig
from sidewinder.sharding.dims import LocalDims

PAGE_SIZE = 16
"""Default tokens per KV page."""


@dataclass(frozen=True)
class StateSpec:
    """What one rank stores per sequence (slot) and, for hybrids, per token (KV).

    Attributes:
        n_layers: layers with a mixer, each with its own state.
        conv: shape of one layer's convolution state in one slot, `[K-1, C_local]`.
        ssm: shape of one layer's recurrent state in one slot: `[N, D]`, Mamba-2 `[H_local, N, P]`.
        n_invocations: layers that attend, or calls of a shared block: each with its own keys and
            values.
        kv: shape of one token's keys, and of its values, in one invocation:
            `[heads_local, head_dim]`.
    """

    n_layers: int
    conv: tuple[int, int]
    ssm: tuple[int, ...]
    n_invocations: int
    kv: tuple[int, int]

    @staticmethod
    def of(config: ModelConfig, dims: LocalDims) -> "StateSpec":
        """The state of `config` on the rank of `dims`."""
        if config.is_mamba2:
            ssm: tuple[int, ...] = (dims.n_heads_local, config.d_state, config.head_dim)
        else:
            ssm = (config.d_state, dims.d_inner_local)
        attention = config.attention
        return StateSpec(
            n_layers=len(config.mixer_layers),
            conv=(config.d_conv - 1, dims.conv_dim_local),
            ssm=ssm,
            n_invocations=len(attention.layers) if attention else 0,
            kv=(dims.n_kv_heads_local, attention.head_dim) if attention else (0, 0),
        )

    def slot_bytes(self, dtype: torch.dtype, state_dtype: torch.dtype) -> int:
        """Bytes of one slot over all layers: conv state in `dtype`, ssm state in `state_dtype`."""
        per_layer = prod(self.conv) * dtype.itemsize + prod(self.ssm) * state_dtype.itemsize
        return self.n_layers * per_layer

    def page_bytes(self, dtype: torch.dtype, page_size: int = PAGE_SIZE) -> int:
        """Bytes of one KV page (keys and values, all invocations); 0 for pure SSMs."""
        return 2 * self.n_invocations * page_size * prod(self.kv) * dtype.itemsize
