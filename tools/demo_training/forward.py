"""Training forwards of the four families: transformers' maths, without its loop over tokens.

Each function takes the transformers model itself, so parameters, names and checkpoints are
transformers' own, and returns the last hidden states ``[batch, length, d_model]`` after the final
norm. Logits are ``hidden @ embedding.T``: all demo models tie the two.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .scan import causal_conv, selective_scan


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _mamba1_mixer(mixer: Any, x: Tensor) -> Tensor:
    """Mamba, and Falcon-Mamba with its weightless norms on dt, B, C: ``[b, t, d_model]``."""
    w_u, w_z = mixer.in_proj.weight.chunk(2)
    u = causal_conv(F.linear(x, w_u), mixer.conv1d.weight, mixer.conv1d.bias)
    n = mixer.ssm_state_size
    parts = mixer.x_proj(u).split([mixer.time_step_rank, n, n], -1)
    if hasattr(mixer, "dt_layernorm"):
        parts = [_norm(p, None, mixer.rms_eps) for p in parts]
    rank, B, C = parts
    dt = F.softplus(mixer.dt_proj(rank))
    A = -torch.exp(mixer.A_log)
    y = selective_scan(u, dt, A, B[:, :, None], C[:, :, None], mixer.D, F.linear(x, w_z))
    return F.linear(y, mixer.out_proj.weight)


def _mamba2_mixer(mixer: Any, x: Tensor) -> Tensor:
    """Mamba-2: a scan whose states share one decay per head, then the gated norm."""
    d_inner, groups, n = mixer.intermediate_size, mixer.n_groups, mixer.ssm_state_size
    w_z, w_xbc, w_dt = mixer.in_proj.weight.split([d_inner, mixer.conv_dim, mixer.num_heads])
    xbc = causal_conv(F.linear(x, w_xbc), mixer.conv1d.weight, mixer.conv1d.bias)
    u, B, C = torch.split(xbc, [d_inner, groups * n, groups * n], -1)
    dt = F.softplus(F.linear(x, w_dt) + mixer.dt_bias).clamp(*mixer.time_step_limit)

    def per_channel(head_values: Tensor) -> Tensor:  # [..., heads] to [..., d_inner]
        return head_values.repeat_interleave(mixer.head_dim, -1)

    A = -torch.exp(per_channel(mixer.A_log))[:, None]
    B, C = (part.reshape(*part.shape[:-1], groups, n) for part in (B, C))
    y = selective_scan(u, per_channel(dt), A, B, C, per_channel(mixer.D))
    y = (y * F.silu(F.linear(x, w_z))).view(*y.shape[:-1], groups, -1)
    y = _norm(y, None, mixer.norm.variance_epsilon).flatten(-2) * mixer.norm.weight
    return F.linear(y, mixer.out_proj.weight)


def _block_diagonal(weights: Tensor) -> Tensor:
    """``[heads, rows, cols]`` to ``[heads * rows, heads * cols]``."""
    result: Tensor = torch.block_diag(*weights)  # type: ignore[no-untyped-call]
    return result


def _zamba_mixer(mixer: Any, x: Tensor) -> Tensor:
    """Zamba's Mamba-1: x and z rows of in_proj alternate; every Mamba head has its own dt, B, C."""
    heads, n = mixer.n_mamba_heads, mixer.ssm_state_size
    w_u, w_z = mixer.in_proj.weight.unflatten(0, (-1, 2)).unbind(1)
    u = causal_conv(F.linear(x, w_u), mixer.conv1d.weight, mixer.conv1d.bias)
    # One product with a block-diagonal matrix is cheaper here than one small product per head.
    projected = F.linear(u, _block_diagonal(mixer.x_proj_weight))
    projected = projected.view(*u.shape[:-1], heads, -1)
    rank, B, C = torch.split(projected, [mixer.time_step_rank, n, n], -1)
    dt = F.linear(rank.flatten(-2), _block_diagonal(mixer.dt_proj_weight))
    dt = F.softplus(dt + mixer.dt_proj_bias.flatten())
    A = -torch.exp(mixer.A_log.flatten(0, 1))
    z = F.linear(x, w_z)
    y = selective_scan(u, dt, A, B, C, mixer.D.flatten(), z)
    return F.linear(y, mixer.out_proj.weight)


def _zamba_shared(block: Any, hidden: Tensor, embedded: Tensor) -> Tensor:
    """Zamba's shared transformer block on concat(hidden, embedding): ``[b, t, d_model]``."""
    attention, mlp = block.self_attn, block.feed_forward
    norm = block.input_layernorm
    x = _norm(torch.cat([hidden, embedded], -1), norm.weight, norm.variance_epsilon)
    q, k, v = (
        projection(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    x = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=attention.scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    x = attention.o_proj(x.transpose(1, 2).flatten(-2))
    norm = block.pre_ff_layernorm
    x = _norm(x, norm.weight, norm.variance_epsilon)
    result: Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    return result


def _zamba_hidden(model: Any, tokens: Tensor) -> Tensor:
    hidden = embedded = model.model.embed_tokens(tokens)
    for layer in model.model.layers:
        x, mamba = hidden, layer
        if hasattr(layer, "shared_transf"):
            x = hidden + layer.linear(_zamba_shared(layer.shared_transf, hidden, embedded))
            mamba = layer.mamba_decoder
        norm = mamba.input_layernorm
        hidden = hidden + _zamba_mixer(mamba.mamba, _norm(x, norm.weight, norm.variance_epsilon))
    norm = model.model.final_layernorm
    return _norm(hidden, norm.weight, norm.variance_epsilon)


def _backbone_hidden(model: Any, tokens: Tensor) -> Tensor:
    mixer = _mamba2_mixer if model.config.model_type == "mamba2" else _mamba1_mixer
    hidden = model.backbone.embeddings(tokens)
    for layer in model.backbone.layers:
        norm = layer.norm
        x = _norm(hidden, norm.weight, norm.variance_epsilon)
        hidden = hidden + mixer(layer.mixer, x)
    norm = model.backbone.norm_f
    return _norm(hidden, norm.weight, norm.variance_epsilon)


def hidden_states(model: Any, tokens: Tensor) -> Tensor:
    """Last hidden states ``[batch, length, d_model]`` for ``tokens [batch, length]``."""
    forward = _zamba_hidden if model.config.model_type == "zamba" else _backbone_hidden
    return forward(model, tokens)


def logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits ``[batch, length, vocab]`` for ``tokens [batch, length]``."""
    return F.linear(hidden_states(model, tokens), model.get_input_embeddings().weight)
