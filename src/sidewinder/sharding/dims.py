"""Which part of a model each rank owns: shares of channels, heads, groups, rows.

Everything here is arithmetic on `(config, tp)`; no tensors. A share is cut at multiples of a *unit*
(a block of channels, a Mamba-2 head, an attention head), so shares of different ranks differ by
little, mostly by one unit at most, and any `tp` up to the number of units works.
"""

from dataclasses import dataclass

from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.shares import Share, split_channels, split_units


@dataclass(frozen=True)
class HeadPiece:
    """The part of Mamba head `head` that a rank owns: its *local* channels `[start, stop)`."""

    head: int
    start: int
    stop: int


def channel_shares(config: ModelConfig, parts: int) -> tuple[Share, ...]:
    """Every rank's share of the `d_inner` channels, in rank order.

    Mamba-2 splits whole heads. Mamba-1 kinds with several heads (Zamba) follow the heads where they
    can: whole heads when there are at least `parts`, equal parts of a head when the heads divide
    `parts`; otherwise plain blocks of channels, whatever heads they touch.
    """
    heads, head_dim = config.n_heads, config.head_dim
    if config.is_mamba2 or heads >= parts > 1:
        return split_units(heads, parts, head_dim)
    if parts % heads == 0:
        inside = split_channels(head_dim, parts // heads)
        return tuple(
            Share(head * head_dim + share.start, head * head_dim + share.stop)
            for head in range(heads)
            for share in inside
        )
    return split_channels(config.d_inner, parts)


def x_proj_partition(config: ModelConfig, parts: int) -> tuple[tuple[int, ...], ...]:
    """Groups of ranks that sum their `x_proj` outputs; groups of one rank need no collective.

    Mamba-2 has no `x_proj`: every rank is alone. One Mamba head: all ranks together. Zamba: the
    ranks that share a head, or all ranks where shares do not follow the heads.
    """
    if config.is_mamba2 or config.n_heads >= parts:
        return tuple((rank,) for rank in range(parts))
    if parts % config.n_heads == 0:
        each = parts // config.n_heads
        return tuple(tuple(range(head * each, (head + 1) * each)) for head in range(config.n_heads))
    return (tuple(range(parts)),)


def largest_tp(config: ModelConfig) -> int:
    """The largest `tp` that gives each rank a unit of everything that is split; all below work."""
    units = [config.vocab_size, config.n_heads if config.is_mamba2 else config.d_inner]
    if config.attention is not None:
        units.append(config.attention.n_heads)
    if config.mlp is not None:
        units.append(config.mlp.d_ff)
    if (experts := config.experts) is not None:
        units += [experts.d_ff, experts.shared_d_ff or experts.d_ff]
    return min(units)


def check_tp(config: ModelConfig, size: int) -> None:
    """Raise ValueError, naming the sizes that work, unless `size` ranks can split the model."""
    largest = largest_tp(config)
    if not 1 <= size <= largest:
        raise ValueError(
            f"tp={size} does not fit this {config.family} model ({_what_limits(config)}); "
            f"valid tp: {'1' if largest == 1 else f'1 to {largest}'}"
        )


def _what_limits(config: ModelConfig) -> str:
    parts = [f"vocabulary {config.vocab_size}", f"{config.d_inner} channels"]
    if config.is_mamba2:
        parts.append(f"{config.n_heads} SSM heads")
    if config.attention is not None:
        parts.append(f"{config.attention.n_heads} attention heads")
    if config.mlp is not None:
        parts.append(f"d_ff {config.mlp.d_ff}")
    if (experts := config.experts) is not None:
        parts.append(f"experts' d_ff {experts.d_ff}")
        if experts.shared_d_ff:
            parts.append(f"d_ff {experts.shared_d_ff} beside them")
    return ", ".join(parts)


@dataclass(frozen=True)
class LocalDims:
    """One rank's sizes and shares. Fields that a family does not have are 0 or empty.

    Attributes:
        tp: which rank of how many.
        vocab: this rank's rows of the embedding and of `lm_head`.
        vocab_sizes: rows of every rank, in rank order (what gathering logits needs).
        channels: this rank's share of the `d_inner` channels.
        head_pieces: Mamba-1 kinds: the Mamba heads that `channels` touches, with local channels.
        x_proj_partition: groups of ranks that sum `x_proj` (see `x_proj_partition`).
        x_proj_heads: the heads `[start, stop)` whose dt, B, C that sum holds, in this rank's group.
        heads: Mamba-2: this rank's SSM heads.
        groups: Mamba-2: the groups of B and C that those heads use; ranks may overlap.
        head_group: Mamba-2: local group of each local head.
        conv_dim_local: channels of this rank's convolution.
        kv_heads: hybrid: this rank's key-value heads; ranks may share one.
        n_attention_heads_local: hybrid: its query heads, as many for each of them.
        d_ff: hybrid: this rank's share of the MLP's inner width.
        expert_d_ff, shared_d_ff: the same of each expert, and of the MLP beside them.
    """

    tp: TensorParallel
    vocab: Share
    vocab_sizes: tuple[int, ...]
    channels: Share
    head_pieces: tuple[HeadPiece, ...]
    x_proj_partition: tuple[tuple[int, ...], ...]
    x_proj_heads: Share
    heads: Share
    groups: Share
    head_group: tuple[int, ...]
    conv_dim_local: int
    kv_heads: Share
    n_attention_heads_local: int
    d_ff: Share
    expert_d_ff: Share
    shared_d_ff: Share

    @property
    def vocab_local(self) -> int:
        return self.vocab.size

    @property
    def d_inner_local(self) -> int:
        return self.channels.size

    @property
    def n_heads_local(self) -> int:
        return self.heads.size

    @property
    def n_groups_local(self) -> int:
        return self.groups.size

    @property
    def n_kv_heads_local(self) -> int:
        return self.kv_heads.size

    @property
    def d_ff_local(self) -> int:
        return self.d_ff.size

    @staticmethod
    def of(config: ModelConfig, tp: TensorParallel) -> "LocalDims":
        """The shares of rank `tp.rank`.

        Raises:
            ValueError: if the model cannot be split over `tp.size` ranks; names the valid sizes.
        """
        check_tp(config, tp.size)
        rows = split_units(config.vocab_size, tp.size)
        channels = channel_shares(config, tp.size)[tp.rank]
        heads, groups, head_group = _mamba2_shares(config, tp)
        kv_heads, queries = _attention_shares(config, tp)
        partition = x_proj_partition(config, tp.size)
        return LocalDims(
            tp=tp,
            vocab=rows[tp.rank],
            vocab_sizes=tuple(share.size for share in rows),
            channels=channels,
            head_pieces=_head_pieces(config, channels),
            x_proj_partition=partition,
            x_proj_heads=_x_proj_heads(config, tp, partition),
            heads=heads,
            groups=groups,
            head_group=head_group,
            conv_dim_local=channels.size + 2 * groups.size * config.d_state,
            kv_heads=kv_heads,
            n_attention_heads_local=queries,
            d_ff=_width_share(config.mlp.d_ff if config.mlp else 0, tp),
            expert_d_ff=_width_share(config.experts.d_ff if config.experts else 0, tp),
            shared_d_ff=_width_share(config.experts.shared_d_ff if config.experts else 0, tp),
        )


def group_shares(config: ModelConfig, parts: int) -> tuple[Share, ...]:
    """Mamba-2: the groups of B and C that each rank's heads use; neighbours may share a group."""
    per_group = config.n_heads // config.n_groups
    return tuple(
        Share(heads.start // per_group, -(-heads.stop // per_group))
        for heads in split_units(config.n_heads, parts)
    )


def _mamba2_shares(config: ModelConfig, tp: TensorParallel) -> tuple[Share, Share, tuple[int, ...]]:
    if not config.is_mamba2:
        return Share(0, 0), Share(0, 0), ()
    heads = split_units(config.n_heads, tp.size)[tp.rank]
    groups = group_shares(config, tp.size)[tp.rank]
    per_group = config.n_heads // config.n_groups
    head_group = tuple(head // per_group - groups.start for head in range(heads.start, heads.stop))
    return heads, groups, head_group


def attention_shares(
    attention: AttentionConfig, parts: int
) -> tuple[tuple[Share, ...], tuple[Share, ...]]:
    """Every rank's key-value heads and its query heads, in rank order.

    Key-value heads go with all their queries; where there are fewer of them than ranks, several
    ranks have the same one, and share its queries.
    """
    per_head = attention.n_heads // attention.n_kv_heads
    if parts <= attention.n_kv_heads:
        return (
            split_units(attention.n_kv_heads, parts),
            split_units(attention.n_kv_heads, parts, per_head),
        )
    pairs = [
        (Share(head, head + 1), Share(head * per_head + own.start, head * per_head + own.stop))
        for head, ranks in enumerate(split_units(parts, attention.n_kv_heads))
        for own in split_units(per_head, ranks.size)
    ]
    return tuple(kv for kv, _ in pairs), tuple(queries for _, queries in pairs)


def _attention_shares(config: ModelConfig, tp: TensorParallel) -> tuple[Share, int]:
    if config.attention is None:
        return Share(0, 0), 0
    kv_heads, queries = attention_shares(config.attention, tp.size)
    return kv_heads[tp.rank], queries[tp.rank].size


def _width_share(width: int, tp: TensorParallel) -> Share:
    return split_channels(width, tp.size)[tp.rank] if width else Share(0, 0)


def _head_pieces(config: ModelConfig, channels: Share) -> tuple[HeadPiece, ...]:
    if config.is_mamba2:
        return ()
    head_dim = config.head_dim
    first, last = channels.start // head_dim, (channels.stop - 1) // head_dim
    return tuple(
        HeadPiece(
            head,
            max(head * head_dim, channels.start) - channels.start,
            min((head + 1) * head_dim, channels.stop) - channels.start,
        )
        for head in range(first, last + 1)
    )


def _x_proj_heads(
    config: ModelConfig, tp: TensorParallel, partition: tuple[tuple[int, ...], ...]
) -> Share:
    """Heads that the ranks of this rank's `x_proj` group touch together."""
    if config.is_mamba2:
        return Share(0, 0)
    group = next(group for group in partition if tp.rank in group)
    shares = channel_shares(config, tp.size)
    pieces = [piece for rank in group for piece in _head_pieces(config, shares[rank])]
    return Share(min(piece.head for piece in pieces), max(piece.head for piece in pieces) + 1)
