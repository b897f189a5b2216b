"""The causal convolution in Triton: one kernel for prefill, one for sequences of one token, and one
for such with drafts."""

import torch
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.causal_conv1d import chain_kernels, kernels
from sidewinder.ops.launching import (
    blocks,
    chunks_bound,
    early_in_slots,
    launch,
    power_of_two,
    single_places,
)
from sidewinder.state.batch import Sequences

PREFILL: tuple[tuning.Config, ...] = tuple(
    {"block_t": block_t, "rows": rows, "block_c": block_c, "num_warps": warps}
    for block_t, rows, block_c, warps in [
        (64, 16, 128, 1),
        (64, 8, 256, 1),
        (32, 8, 256, 1),
        (64, 4, 256, 1),
        (32, 8, 512, 2),
        (128, 8, 256, 1),
        (64, 8, 128, 1),
        (128, 16, 128, 1),
        (32, 4, 512, 2),
    ]
)
"""A thread has eight channels (or four), so that it loads 16 bytes at a time."""
UPDATE: tuple[tuning.Config, ...] = tuple(
    {"block_c": block_c, "num_warps": warps}
    for block_c, warps in [(256, 2), (128, 1), (128, 4), (512, 4), (1024, 8)]
)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    activation: bool = True,
) -> Tensor:
    """As `reference.causal_conv1d`; `weight` and `bias` are contiguous."""
    assert x.stride(1) == state.stride(2) == 1, "channels are contiguous"
    assert weight.is_contiguous(), "the taps are contiguous"
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    arguments = (x, weight, bias, state, seqs, activation, y)
    sizes = (x.dtype, *weight.shape)
    assert not seqs.waves, "drafts come in chains"
    if seqs.n_decodes:
        key = (*sizes, tuning.bucket(seqs.n_chains))
        name = "conv_update" if seqs.chains is None else "conv_chains"
        config = tuning.choose(
            name, key, UPDATE, lambda config: _update(*arguments, config), (state,)
        )
        _update(*arguments, config)
    if seqs.n_seqs > seqs.n_decodes:
        key = (*sizes, tuning.bucket(seqs.n_tokens))
        config = tuning.choose(
            "conv_prefill", key, PREFILL, lambda config: _prefill(*arguments, config), (state,)
        )
        _prefill(*arguments, config)
    return y


def _update(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    activation: bool,
    y: Tensor,
    config: tuning.Config,
) -> None:
    channels = x.shape[1]
    launch(
        kernels.update if seqs.chains is None else chain_kernels.update_chains,
        (seqs.n_chains, blocks(channels, config["block_c"])),
        x, x.stride(0), weight, bias, state, *state.stride()[:2], *single_places(seqs), y, channels,
        TAPS=weight.shape[0], ACTIVATION=activation, BLOCK_C=config["block_c"],
        num_warps=config["num_warps"], **early_in_slots(),
    )  # fmt: skip


def _prefill(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    activation: bool,
    y: Tensor,
    config: tuning.Config,
) -> None:
    taps, channels = weight.shape
    block_t = power_of_two(taps - 1, least=config["block_t"])
    rows = min(config["rows"], block_t)
    launch(
        kernels.prefill,
        (chunks_bound(seqs, block_t) * blocks(channels, config["block_c"]),),
        x, x.stride(0), weight, bias, state, *state.stride()[:2], seqs.cu_seqlens, seqs.slots,
        seqs.fresh.view(torch.uint8), y, channels, seqs.n_decodes, seqs.n_seqs,
        TAPS=taps, ACTIVATION=activation, BLOCK_T=block_t, ROWS=rows, BLOCK_C=config["block_c"],
        BLOCK_S=power_of_two(seqs.n_seqs - seqs.n_decodes), num_warps=config["num_warps"],
    )  # fmt: skip
