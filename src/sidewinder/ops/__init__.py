"""The operators of the models: one package each, one dispatch for all (`dispatch.py`).

Every operator takes activations tokens-major (`[T, channels]`) and, where it has state, reads and
writes it in place at the slots of the batch's sequences.
"""

from sidewinder.ops import (
    add_rows,
    causal_conv1d,
    codec,
    concat_rms_norm,
    experts,
    gated_activation,
    gated_rms_norm,
    gated_squares,
    linear,
    native,
    paged_attention,
    projected_scan,
    prompt_attention,
    rms_norm,
    rotary,
    route,
    scaled_rows,
    selective_scan,
    ssd_scan,
    store_kv,
    with_scalar,
)

__all__ = [
    "add_rows",
    "causal_conv1d",
    "codec",
    "concat_rms_norm",
    "experts",
    "gated_activation",
    "gated_rms_norm",
    "gated_squares",
    "linear",
    "native",
    "paged_attention",
    "projected_scan",
    "prompt_attention",
    "rms_norm",
    "rotary",
    "route",
    "scaled_rows",
    "selective_scan",
    "ssd_scan",
    "store_kv",
    "with_scalar",
]
