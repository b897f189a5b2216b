"""Rules that say how one parameter is split, and the pure functions that apply them.

A rule names, for one dimension and every rank, the ranges that the rank owns. A packed parameter
is a list of named bands along that dimension; each band is split on its own and a rank's pieces are
packed again, so the whole tensor is never sliced across bands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.shares import Share


@dataclass(frozen=True)
class Replicate:
    """Every rank holds the whole parameter."""


@dataclass(frozen=True)
class Split:
    """Split along `dim`: rank `r` holds `shares[r]`. `unit` names what is never cut.

    Shares cover the dimension and may overlap (key-value heads that ranks share).
    """

    dim: int
    unit: str
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Band:
    """A named part of a packed dimension: `size` elements, of which rank `r` holds `shares[r]`.

    Shares count from the band's own start. They cover the band and may overlap (Mamba-2's groups).
    """

    name: str
    unit: str
    size: int
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Bands:
    """`bands` packed end to end along `dim`, each split on its own."""

    dim: int
    bands: tuple[Band, ...]


Rule = Replicate | Split | Bands


@dataclass(frozen=True)
class Piece:
    """A range `[start, stop)` of the global parameter and where it lands in the local one."""

    start: int
    stop: int
    local_start: int


def pieces(rule: Split | Bands, rank: int) -> Iterator[Piece]:
    """The ranges along `rule.dim` that `rank` holds, in the order in which it packs them."""
    offset = local = 0
    for size, share in _band_shares(rule, rank):
        yield Piece(offset + share.start, offset + share.stop, local)
        offset += size
        local += share.size


def _band_shares(rule: Split | Bands, rank: int) -> Iterator[tuple[int, Share]]:
    if isinstance(rule, Split):
        yield rule.shares[-1].stop, rule.shares[rank]
    else:
        for band in rule.bands:
            yield band.size, band.shares[rank]


def n_ranks(rule: Split | Bands) -> int:
    """Number of ranks that a rule was made for."""
    return len(rule.shares if isinstance(rule, Split) else rule.bands[0].shares)


def local_shape(rule: Rule, shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """Shape of `rank`'s part of a parameter of global `shape`."""
    if isinstance(rule, Replicate):
        return tuple(shape)
    local = list(shape)
    local[rule.dim] = sum(piece.stop - piece.start for piece in pieces(rule, rank))
    return tuple(local)


def shard(rule: Rule, tensor: Tensor, tp: TensorParallel) -> Tensor:
    """Rank `tp.rank`'s part of the global `tensor`: a contiguous copy.

    The rule must have been made for `tp.size` ranks, and its bands must add up to the tensor.
    """
    if isinstance(rule, Replicate):
        return tensor.clone(memory_format=torch.contiguous_format)
    assert n_ranks(rule) == tp.size, f"rule for {n_ranks(rule)} ranks used with tp={tp.size}"
    total = sum(size for size, _ in _band_shares(rule, tp.rank))
    assert total == tensor.shape[rule.dim], f"rule covers {total} of {tensor.shape[rule.dim]}"
    parts = [
        tensor.narrow(rule.dim, piece.start, piece.stop - piece.start)
        for piece in pieces(rule, tp.rank)
    ]
    return torch.cat(parts, dim=rule.dim).contiguous()


def reassemble(rule: Rule, shards: Sequence[Tensor]) -> Tensor:
    """The global tensor from every rank's part, in rank order: the inverse of `shard`.

    Raises:
        ValueError: if parts that several ranks hold differ among them, or a part has a wrong size.
    """
    if isinstance(rule, Replicate):
        for rank, part in enumerate(shards):
            _require_equal(shards[0], part, rank)
        return shards[0].clone()
    assert n_ranks(rule) == len(shards), f"rule for {n_ranks(rule)} ranks, {len(shards)} shards"
    shape = list(shards[0].shape)
    shape[rule.dim] = sum(size for size, _ in _band_shares(rule, 0))
    whole = shards[0].new_empty(shape)
    filled = torch.zeros(shape[rule.dim], dtype=torch.bool)
    for rank, part in enumerate(shards):
        if part.shape != (expected := local_shape(rule, shape, rank)):
            raise ValueError(f"rank {rank} holds {tuple(part.shape)} instead of {expected}")
        for piece in pieces(rule, rank):
            width = piece.stop - piece.start
            target = whole.narrow(rule.dim, piece.start, width)
            source = part.narrow(rule.dim, piece.local_start, width)
            known = filled[piece.start : piece.stop].nonzero().flatten()
            _require_equal(
                target.index_select(rule.dim, known.to(target.device)),
                source.index_select(rule.dim, known.to(source.device)),
                rank,
            )
            target.copy_(source)
            filled[piece.start : piece.stop] = True
    assert bool(filled.all()), "the rule's shares leave gaps"
    return whole


def _require_equal(known: Tensor, part: Tensor, rank: int) -> None:
    """Bitwise agreement, so that NaNs compare equal to themselves."""
    if known.shape != part.shape or not torch.equal(_bits(known), _bits(part)):
        raise ValueError(f"rank {rank} disagrees with earlier ranks about a replicated part")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
