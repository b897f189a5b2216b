"""Drawing tokens from rows of logits whose columns are spread over ranks.

Probabilities are kept as integers relative to the most likely token, `weight`, so that their sums
are exact: the same on every rank and device, whoever adds what first, and the same whether a row is
whole or only its largest values are looked at. `reference.draw_row` is the definition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.sampling import select
from sidewinder.sampling.params import SamplingParams
from sidewinder.sampling.vocab_shard import VocabShard

WEIGHT_SCALE = 2.0**45
"""Weight of the most likely token; 2**18 tokens of it still have a sum below 2**63."""

FIRST_CANDIDATES = 64
"""Candidates that top-p looks at first; eight times as many each time that they do not suffice."""

_MASK64 = 2**64 - 1


def uniform_bits(seed: int, index: int) -> int:
    """Draw number `index` of the random stream `seed`: 64 uniform bits.

    SplitMix64 (Steele, Lea, Flood 2014), whose n-th output needs no state: a request's draws depend
    on its seed and its own token count, never on what else is in the batch.
    """
    state = _mix64(seed & _MASK64) + (index + 1) * 0x9E3779B97F4A7C15
    return _mix64(state & _MASK64)


def _mix64(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def weights(logits: Tensor, best: Tensor, temperature: Tensor, min_p: Tensor | None) -> Tensor:
    """`floor(2**45 · exp((logit - best) / temperature))` as int64; 0 below `min_p` of the best.

    Args:
        logits: float32 `[rows, v]`, any columns.
        best, temperature, min_p: float32 `[rows]`; None keeps all.
    """
    ratio = (logits - best[:, None]).div_(temperature[:, None]).exp_()
    if min_p is not None and bool((min_p > 0).any()):
        ratio = ratio.masked_fill_(ratio < min_p[:, None], 0)
    return ratio.mul_(WEIGHT_SCALE).long()


@dataclass(frozen=True)
class Rows:
    """Rows to draw from: this rank's columns, and for every row what the caller asked.

    Attributes:
        logits: float32 `[n, v_local]`, after penalties and masks.
        best: float32 `[n]`, the largest logit of the whole row.
        temperature, min_p: float32 `[n]`.
        top_k: int64 `[n]`; the vocabulary's size where all count.
        top_p: float64 `[n]`.
        bits: 64 uniform bits per row.
    """

    logits: Tensor
    best: Tensor
    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    bits: list[int]

    @classmethod
    def of(
        cls,
        logits: Tensor,
        best: Tensor,
        params: Sequence[SamplingParams],
        bits: Sequence[int],
        vocab_size: int,
    ) -> "Rows":
        def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=logits.device)

        temperatures = []
        for each in params:
            assert each.temperature is not None, "the engine resolves the default temperature"
            temperatures.append(each.temperature)
        top_k = [min(each.top_k or vocab_size, vocab_size) for each in params]
        return cls(
            logits,
            best,
            column(temperatures),
            column([each.min_p or 0.0 for each in params]),
            column([float(k) for k in top_k], torch.int64),
            column([each.top_p or 1.0 for each in params], torch.float64),
            list(bits),
        )

    def subset(self, rows: Tensor | slice) -> "Rows":
        """Some of the rows: `rows` a slice, or int64 numbers."""
        if isinstance(rows, slice):
            bits = self.bits[rows]
        elif len(rows) == len(self.bits):
            return self
        else:
            bits = [self.bits[row] for row in rows.tolist()]
        return Rows(
            self.logits[rows],
            self.best[rows],
            self.temperature[rows],
            self.min_p[rows],
            self.top_k[rows],
            self.top_p[rows],
            bits,
        )

    def weights(self, logits: Tensor, filtered: bool) -> Tensor:
        """`weights` of columns of these rows, with min-p or without it."""
        return weights(logits, self.best, self.temperature, self.min_p if filtered else None)


def draw(rows: Rows, shard: VocabShard) -> list[int]:
    """One token per row, the same on all ranks."""
    vocab_size = sum(shard.sizes)
    selects = (rows.top_k < vocab_size) | (rows.top_p < 1)
    tokens = [0] * len(rows.bits)
    for chosen, how in ((selects, _draw_selected), (~selects, _draw_from_all)):
        places = torch.nonzero(chosen)[:, 0]
        if len(places):
            found = how(rows.subset(places), shard)
            for place, token in zip(places.tolist(), found, strict=True):
                tokens[place] = token
    return tokens


def _draw_from_all(rows: Rows, shard: VocabShard) -> list[int]:
    """Invert the cumulative distribution of whole rows, each rank that of its columns."""
    blocks = _block_sums(rows, filtered=True).cumsum_(-1)
    ends = shard.gather(blocks[:, -1:])[:, :, 0].cumsum(-1)
    targets = _targets(rows.bits, ends[:, -1])
    owners = torch.searchsorted(ends, targets, right=True)
    # Only what the owner finds means anything.
    mine = _find(rows, blocks, targets - _before(ends, owners)) + shard.start
    everyone = shard.gather(mine)[:, :, 0]
    return _as_integers(everyone.gather(1, owners)[:, 0])


def _block_sums(rows: Rows, filtered: bool) -> Tensor:
    """Sums of weights, `[n, blocks of this rank's columns]`."""
    parts = []
    for some in select.in_cache(rows.logits):
        part = rows.subset(some)
        parts.append(select.block_sums(part.weights(part.logits, filtered)))
    return torch.cat(parts)


def _find(rows: Rows, blocks: Tensor, targets: Tensor) -> Tensor:
    """`[n, 1]`: this rank's column in which the cumulative weights pass a target.

    Args:
        blocks: cumulative sums of the columns' blocks.
        targets: `[n, 1]`; where it is not within this rank's sum, the result is any column.
    """
    block = torch.searchsorted(blocks, targets, right=True).clamp_(max=blocks.shape[1] - 1)
    columns = block * select.BLOCK + torch.arange(select.BLOCK, device=block.device)
    last = rows.logits.shape[1] - 1
    inside = rows.weights(rows.logits.gather(1, columns.clamp(max=last)), filtered=True)
    place = torch.searchsorted(inside.cumsum_(-1), targets - _before(blocks, block), right=True)
    return (block * select.BLOCK + place).clamp_(max=last)


def _before(cumulative: Tensor, index: Tensor) -> Tensor:
    """The sum before `index` `[n, 1]`."""
    return torch.where(index > 0, cumulative.gather(1, (index - 1).clamp(min=0)), 0)


def _draw_selected(rows: Rows, shard: VocabShard) -> list[int]:
    """Draw where top-k or top-p leaves few tokens, from the row's largest values."""
    vocab_size = sum(shard.sizes)
    columns = select.n_blocks(max(shard.sizes))
    maxima = select.pad_columns(select.block_maxima(rows.logits), columns, -torch.inf)
    maxima = shard.gather(maxima).flatten(1)
    totals = _totals(rows, shard, vocab_size)
    tokens = torch.zeros_like(rows.top_k)
    left = torch.arange(len(rows.bits), device=tokens.device)
    n = FIRST_CANDIDATES
    while len(left):
        part = rows.subset(left)
        some = part.top_k[part.top_k < vocab_size]
        wanted = max(n, int(some.max())) if len(some) else n
        found, done = _draw_from_largest(
            part, totals[left], select.threshold(maxima[left], wanted), shard
        )
        tokens[left] = torch.where(done, found, tokens[left])
        left, n = left[~done], 8 * n
    return _as_integers(tokens)


def _totals(rows: Rows, shard: VocabShard, vocab_size: int) -> Tensor:
    """Weights of whole rows without top-k, before min-p; 0 where top-k makes that unnecessary."""
    totals = torch.zeros_like(rows.top_k)
    places = torch.nonzero(rows.top_k == vocab_size)[:, 0]
    if len(places):
        part = rows.subset(places)
        local = _block_sums(part, filtered=False).sum(-1, keepdim=True)
        totals[places] = shard.gather(local).sum((1, 2))
    return totals


def _draw_from_largest(
    rows: Rows, totals: Tensor, thresholds: Tensor, shard: VocabShard
) -> tuple[Tensor, Tensor]:
    """Draw from all logits that reach a threshold.

    Returns:
        Tokens `[n]`, and whether each row had all candidates that it needs.
    """
    logits, ids = _candidates(rows.logits, thresholds, shard)
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    weight = rows.weights(ordered, filtered=False)
    last_of_k = (rows.top_k - 1).clamp(max=ordered.shape[1] - 1)[:, None]
    in_k = ordered >= ordered.gather(1, last_of_k)
    limited = rows.top_k < sum(shard.sizes)
    in_k |= ~limited[:, None]
    weight = weight.masked_fill_(~in_k, 0)
    cumulative = weight.cumsum(-1)
    totals = torch.where(limited, cumulative[:, -1], totals)
    reach = rows.top_p * totals.double()
    done = limited | (cumulative[:, -1].double() >= reach) | torch.isneginf(thresholds)
    # The first stays in any case; with p = 1 rounding must not drop the last.
    within = ((cumulative - weight).double() < reach[:, None]) | (rows.top_p[:, None] >= 1)
    kept = torch.where(within & in_k, rows.weights(ordered, filtered=True), 0)
    by_id = torch.zeros_like(kept).scatter_(1, order, kept).cumsum_(-1)
    targets = _targets(rows.bits, by_id[:, -1])
    position = torch.searchsorted(by_id, targets, right=True).clamp(max=ids.shape[1] - 1)
    return ids.gather(1, position)[:, 0], done


def _candidates(logits: Tensor, thresholds: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """All logits of all ranks that reach the thresholds, and their ids, `[n, any]`, ids rising.

    Padding has logit -inf.
    """
    values, positions, _ = select.at_least(logits, thresholds)
    width = torch.tensor([[values.shape[1]]], device=logits.device)
    most = int(shard.gather(width).max())
    packed = torch.stack([
        select.pad_columns(values, most, -torch.inf).double(),
        select.pad_columns(positions, most, 0).double() + shard.start,
    ], dim=-1)  # fmt: skip
    everyone = shard.gather(packed.flatten(1)).view(len(logits), -1, 2)
    return everyone[..., 0].float(), everyone[..., 1].long()


def _targets(bits: Sequence[int], totals: Tensor) -> Tensor:
    """`[n, 1]`: of `total` equal parts, the number of the one that a row's bits fall in."""
    numbers = [(b * total) >> 64 for b, total in zip(bits, totals.tolist(), strict=True)]
    return torch.tensor(numbers, dtype=torch.int64, device=totals.device)[:, None]


def _as_integers(tokens: Tensor) -> list[int]:
    found: list[int] = tokens.tolist()
    return found
