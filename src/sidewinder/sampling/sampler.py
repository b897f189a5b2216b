"""The sampler of one rank: all ranks draw the same tokens, each from its columns of the logits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sidewinder.engine.plan import Admission
from sidewinder.sampling import filters, select
from sidewinder.sampling.draw import Rows, draw, uniform_bits
from sidewinder.sampling.finite import NOT_FINITE, check_drawn
from sidewinder.sampling.params import SamplingParams, TokenLogprobs
from sidewinder.sampling.vocab_shard import VocabShard


def token_logprobs(logits: Tensor, tokens: Sequence[int], n_top: int) -> list[TokenLogprobs]:
    """Logprob, rank and `n_top` best of one token per row of float32 `logits[rows, vocab]`.

    Equal logits are listed by rising id.
    """
    reports: list[TokenLogprobs] = []
    for rows in select.in_cache(logits):
        reports += _row_logprobs(logits[rows], tokens[rows], n_top)
    return reports


def _row_logprobs(logits: Tensor, tokens: Sequence[int], n_top: int) -> list[TokenLogprobs]:
    normaliser = torch.logsumexp(logits, dim=-1)
    index = torch.tensor(tokens, dtype=torch.int64, device=logits.device)[:, None]
    own = logits.gather(1, index)
    ranks = torch.count_nonzero(logits > own, dim=-1) + 1
    top: list[tuple[tuple[int, float], ...]] = [()] * len(tokens)
    if n_top:
        values, ids = select.largest(logits, min(n_top, logits.shape[-1]))
        values = values - normaliser[:, None]
        rows = zip(ids.tolist(), values.tolist(), strict=True)
        top = [tuple(zip(*row, strict=True)) for row in rows]
    logprobs = (own[:, 0] - normaliser).tolist()
    entries = zip(tokens, logprobs, ranks.tolist(), top, strict=True)
    return [TokenLogprobs(*entry) for entry in entries]


@dataclass(frozen=True)
class Draw:
    """How the next token of a sequence is drawn where nothing adjusts its logits.

    Attributes:
        params: its own.
        bits: 64 uniform bits.
    """

    params: SamplingParams
    bits: int

    def limits(self, vocab_size: int) -> tuple[int, list[float]]:
        """top_k within the vocabulary; temperature, min_p and top_p. Not of greedy params."""
        params = self.params
        assert params.temperature is not None, "the engine resolves the default temperature"
        top_k = min(params.top_k or vocab_size, vocab_size)
        return top_k, [params.temperature, params.min_p or 0.0, params.top_p or 1.0]


@dataclass
class _Slot:
    """What the sampler remembers of the sequence in one slot; tensors are of this rank's ids."""

    params: SamplingParams
    seed: int
    ending_ids: Tensor
    bias: Tensor | None
    seen: Tensor | None
    counts: Tensor | None
    n_drawn: int = 0

    @property
    def adjusts(self) -> bool:
        """Whether the next token's logits need more than a temperature and filters."""
        waits = self.n_drawn < self.params.min_tokens
        return self.params.has_penalties or waits or self.bias is not None


class Sampler:
    """Draws tokens for the sequences in the slots of one rank.

    Args:
        vocab_size: tokens per row of logits.
        device: where the logits are.
        shard: which of them this rank has; all by default. The ranks of its collectives make the
            same calls and get the same tokens.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device | str = "cpu",
        shard: VocabShard | None = None,
    ) -> None:
        self._shard = VocabShard.whole(vocab_size) if shard is None else shard
        assert sum(self._shard.sizes) == vocab_size, "the shares make up the vocabulary"
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._slots: dict[int, _Slot] = {}
        self._widened = torch.empty(0, device=self._device)

    def admit(self, admission: Admission) -> None:
        """Start a sequence in a slot; what was there before is forgotten."""
        params = admission.params
        ending = set(params.stop_token_ids)
        if not params.ignore_eos:
            ending |= set(admission.eos_token_ids)
        bias = seen = counts = None
        if params.logit_bias:
            bias = torch.zeros(self._shard.size, device=self._device)
            for token, value in params.logit_bias:
                bias[self._own([token])] = value
        if params.penalises_repetition:
            seen = torch.zeros(self._shard.size, dtype=torch.bool, device=self._device)
            seen[self._own(admission.prompt_tokens)] = True
        if params.counts_output:
            counts = torch.zeros(self._shard.size, device=self._device)
        ending_ids = torch.tensor(self._own(sorted(ending)), dtype=torch.int64, device=self._device)
        self._slots[admission.slot] = _Slot(params, admission.seed, ending_ids, bias, seen, counts)

    def sample(
        self, logits: Tensor, slots: Sequence[int], allowed: Sequence[bytes] | None = None
    ) -> list[int]:
        """Draw the next token of each sequence.

        Args:
            logits: `[len(slots), vocab_local]`, row by row for `slots`; not changed.
            slots: admitted slots. Rows of the same one are its next draws, one after another; what
                is drawn must not matter to the next then (see `unadjusted`).
            allowed: for each of them the tokens that may be drawn, one bit per id, the lowest bit
                of each byte first; empty allows all.

        Returns:
            The tokens; `NOT_FINITE` where logits hold NaN or infinity behind another row of the
            same slot: whether such a row counts is for the caller to say.

        Raises:
            NotFinite: if the first row of a slot holds NaN or infinity.
        """
        states = [self._slots[slot] for slot in slots]
        masks = [b""] * len(states) if allowed is None else allowed
        adjusted = [i for i, s in enumerate(states) if s.adjusts or masks[i]]
        rows = self._float32(logits, copy=bool(adjusted))
        raw = rows.amax(-1) if adjusted else None
        for i in adjusted:
            self._mask(rows[i], masks[i])
            _adjust(rows[i], states[i])
        tokens, best = self._best(rows, raw)
        nth = _occurrences(slots)
        known = [i for i, token in enumerate(tokens) if token != NOT_FINITE]
        check_drawn(tokens, [i for i in range(len(tokens)) if not nth[i]])
        random = [i for i in known if not states[i].params.greedy]
        if random:
            bits = [uniform_bits(states[i].seed, states[i].n_drawn + nth[i]) for i in random]
            params = [states[i].params for i in random]
            chosen = rows if len(random) == len(rows) else rows[random]
            wanted = Rows.of(chosen, best[random], params, bits, self._vocab_size)
            for i, token in zip(random, draw(wanted, self._shard), strict=True):
                tokens[i] = token
        for state, token in zip(states, tokens, strict=True):
            self._remember(state, token)
        return tokens

    def logprobs(
        self, logits: Tensor, slots: Sequence[int], tokens: Sequence[int], report: bool = True
    ) -> list[TokenLogprobs | None]:
        """Report on the tokens just drawn, for the slots whose params ask for it.

        Args:
            logits, slots: as `sample` got them.
            tokens: what it returned.
            report: whether this rank's reports are wanted; every rank must call in any case.
        """
        wanted = [self._slots[slot].params.logprobs for slot in slots]
        rows = [i for i, n_top in enumerate(wanted) if n_top is not None]
        reports: list[TokenLogprobs | None] = [None] * len(slots)
        if not rows:
            return reports
        whole = self._shard.gather_columns(logits if len(rows) == len(slots) else logits[rows])
        if report:
            most = max(wanted[i] or 0 for i in rows)
            found = token_logprobs(self._float32(whole), [tokens[i] for i in rows], most)
            for i, each in zip(rows, found, strict=True):
                reports[i] = replace(each, top=each.top[: wanted[i]])
        return reports

    def keep(self, slot: int, n_drawn: int, n_kept: int, new_slot: int) -> None:
        """Of the last `n_drawn` draws of a slot's sequence only the first `n_kept` count, and it is
        in `new_slot` from here on."""
        state = self._slots.pop(slot)
        state.n_drawn -= n_drawn - n_kept
        self._slots[new_slot] = state

    def unadjusted(self, slots: Sequence[int], allowed: Sequence[bytes]) -> list[Draw] | None:
        """How to draw the next tokens of `slots`, for a caller that does it; None if it cannot:
        a row has penalties, biases or tokens that must not come. As of `sample`, those of the same
        slot are its next draws, one after another."""
        states = [self._slots[slot] for slot in slots]
        if any(allowed) or any(state.adjusts for state in states):
            return None
        return [
            Draw(state.params, uniform_bits(state.seed, state.n_drawn + nth))
            for state, nth in zip(states, _occurrences(slots), strict=True)
        ]

    def advance(self, slots: Sequence[int]) -> None:
        """The caller draws the next tokens of `slots` itself (see `unadjusted`, which is never None
        where the tokens would have to be remembered)."""
        for slot in slots:
            self._slots[slot].n_drawn += 1

    def _float32(self, logits: Tensor, copy: bool = False) -> Tensor:
        """`logits` in float32; a copy, where that is asked or needed, into memory that is kept."""
        if logits.dtype == torch.float32 and not copy:
            return logits
        if self._widened.numel() < logits.numel():
            self._widened = torch.empty(logits.numel(), device=self._device)
        return self._widened[: logits.numel()].view(logits.shape).copy_(logits)

    def _best(self, rows: Tensor, raw: Tensor | None) -> tuple[list[int], Tensor]:
        """The most likely token of each row, `NOT_FINITE` where that is not known, and its logit,
        from every rank's own.

        `raw` holds each row's largest before some were adjusted: NaN must not hide behind a mask.
        """
        best, ids = select.first_max(rows)
        raw = best if raw is None else raw
        if self._shard.n_ranks > 1:
            own = torch.stack([raw.double(), best.double(), (ids + self._shard.start).double()], -1)
            raws, bests, everyones = self._shard.gather(own).unbind(-1)
            raw, (best, rank) = raws.amax(-1), bests.max(-1)
            ids = everyones.gather(1, rank[:, None])[:, 0].long()
            best = best.float()
        is_finite = torch.isfinite(raw) & torch.isfinite(best)
        tokens: list[int] = torch.where(is_finite, ids, NOT_FINITE).tolist()
        return tokens, best

    def _own(self, tokens: Sequence[int]) -> list[int]:
        """Columns of those tokens that this rank has."""
        start, stop = self._shard.start, self._shard.start + self._shard.size
        return [token - start for token in tokens if start <= token < stop]

    def _mask(self, row: Tensor, allowed: bytes) -> None:
        """Keep the allowed tokens of a row `[vocab_local]`, in place."""
        if not allowed:
            return
        bits = np.unpackbits(
            np.frombuffer(allowed, dtype=np.uint8), count=self._vocab_size, bitorder="little"
        )
        start = self._shard.start
        kept = torch.from_numpy(bits[start : start + self._shard.size].astype(bool))
        row.masked_fill_(~kept.to(row.device), -torch.inf)

    def _remember(self, state: _Slot, token: int) -> None:
        state.n_drawn += 1
        if state.seen is None and state.counts is None:
            return
        column = self._own([token])
        if state.seen is not None:
            state.seen[column] = True
        if state.counts is not None:
            state.counts[column] += 1


def _occurrences(slots: Sequence[int]) -> list[int]:
    """How often each slot is among those before it."""
    if len(set(slots)) == len(slots):
        return [0] * len(slots)
    seen: Counter[int] = Counter()
    found = []
    for slot in slots:
        found.append(seen[slot])
        seen[slot] += 1
    return found


def _adjust(row: Tensor, state: _Slot) -> None:
    """Endings, biases and penalties on one row `[vocab_local]`, in place."""
    params = state.params
    if state.n_drawn < params.min_tokens and len(state.ending_ids):
        row.index_fill_(0, state.ending_ids, -torch.inf)
    if state.bias is not None:
        row += state.bias
    if state.seen is not None:
        columns = select.positions_of(state.seen)
        row[columns] = filters.repetition_penalty(row[columns], params.repetition_penalty or 1.0)
    if state.counts is not None:
        columns = select.positions_of(state.counts > 0)
        row[columns] = filters.output_penalties(
            row[columns], state.counts[columns], params.presence_penalty, params.frequency_penalty
        )
