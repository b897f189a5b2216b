"""The sampler of one rank: every rank draws the same tokens from the same logits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sidewinder.engine.plan import Admission
from sidewinder.sampling import filters
from sidewinder.sampling.params import SamplingParams, TokenLogprobs

_MASK64 = 2**64 - 1
_WEIGHT_SCALE = 2.0**52
"""Probabilities become integers of this scale, so that their sums are exact on any device."""


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


def draw(logits: Tensor, bits: Sequence[int]) -> list[int]:
    """Pick one token per row by inverting the cumulative distribution.

    Args:
        logits: float32 `[rows, vocab]`, after temperature and filters.
        bits: 64 uniform bits per row.

    The distribution is summed in integers, so that the result does not depend on the order in
    which a device adds. A token of probability below 2**-52 is never drawn.
    """
    # The scale is a power of two, so the product is exact in float32.
    cumulative = torch.softmax(logits, dim=-1).mul_(_WEIGHT_SCALE).long().cumsum_(dim=-1)
    totals = cumulative[:, -1].tolist()
    targets = [(b * total) >> 64 for b, total in zip(bits, totals, strict=True)]
    wanted = torch.tensor(targets, dtype=torch.int64, device=logits.device)[:, None]
    tokens: list[int] = torch.searchsorted(cumulative, wanted, right=True)[:, 0].tolist()
    return tokens


def token_logprobs(logits: Tensor, tokens: Sequence[int], n_top: int) -> list[TokenLogprobs]:
    """Logprob, rank and `n_top` best of one token per row of float32 `logits[rows, vocab]`."""
    logprobs = torch.log_softmax(logits, dim=-1)
    index = torch.tensor(tokens, dtype=torch.int64, device=logits.device)[:, None]
    own = logprobs.gather(1, index)
    ranks = (logprobs > own).sum(dim=-1) + 1
    top: list[tuple[tuple[int, float], ...]] = [()] * len(tokens)
    if n_top:
        values, ids = torch.topk(logprobs, min(n_top, logits.shape[-1]), dim=-1)
        rows = zip(ids.tolist(), values.tolist(), strict=True)
        top = [tuple(zip(*row, strict=True)) for row in rows]
    entries = zip(tokens, own[:, 0].tolist(), ranks.tolist(), top, strict=True)
    return [TokenLogprobs(*entry) for entry in entries]


def check_finite(logits: Tensor) -> Tensor:
    """Return each row's most likely token, the lowest id on ties; raise if a row is not finite.

    Raises:
        RuntimeError: naming the first such row.
    """
    best, tokens = logits.max(dim=-1)  # a NaN counts as the maximum
    finite = torch.isfinite(best)
    if not bool(finite.all()):
        row = int(torch.nonzero(~finite)[0])
        raise RuntimeError(
            f"the model's logits hold NaN or infinity (row {row} of {len(logits)}): the weights "
            "are damaged or overflow in this dtype; try dtype='float32'"
        )
    return tokens


@dataclass
class _Slot:
    """What the sampler remembers of the sequence in one slot."""

    params: SamplingParams
    seed: int
    ending_ids: Tensor
    seen: Tensor | None
    counts: Tensor | None
    n_drawn: int = 0

    @property
    def adjusts(self) -> bool:
        """Whether the next token's logits need more than a temperature and filters."""
        return self.params.has_penalties or self.n_drawn < self.params.min_tokens


class Sampler:
    """Draws tokens for the sequences in the slots of one rank.

    Args:
        vocab_size: tokens per row of logits.
        device: where the logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._slots: dict[int, _Slot] = {}

    def admit(self, admission: Admission) -> None:
        """Start a sequence in a slot; what was there before is forgotten."""
        params = admission.params
        ending = set(params.stop_token_ids)
        if not params.ignore_eos:
            ending |= set(admission.eos_token_ids)
        seen = counts = None
        if params.repetition_penalty != 1:
            seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
            seen[list(admission.prompt_tokens)] = True
        if params.counts_output:
            counts = torch.zeros(self._vocab_size, device=self._device)
        ending_ids = torch.tensor(sorted(ending), dtype=torch.int64, device=self._device)
        self._slots[admission.slot] = _Slot(params, admission.seed, ending_ids, seen, counts)

    def sample(self, logits: Tensor, slots: Sequence[int]) -> list[int]:
        """Draw the next token of each sequence.

        Args:
            logits: float32 `[len(slots), vocab]`, row by row for `slots`; not changed.
            slots: admitted slots, all different.

        Raises:
            RuntimeError: if logits hold NaN or infinity.
        """
        assert logits.dtype == torch.float32, "sampling works on float32 logits"
        states = [self._slots[slot] for slot in slots]
        if any(state.adjusts for state in states):
            check_finite(logits)
            rows = [_adjust(row, state) for row, state in zip(logits, states, strict=True)]
            logits = torch.stack(rows)
        tokens: list[int] = check_finite(logits).tolist()
        random = [i for i, state in enumerate(states) if not state.params.greedy]
        if random:
            rows = [_filter(logits[i], tokens[i], states[i].params) for i in random]
            bits = [uniform_bits(states[i].seed, states[i].n_drawn) for i in random]
            for i, token in zip(random, draw(torch.stack(rows), bits), strict=True):
                tokens[i] = token
        for state, token in zip(states, tokens, strict=True):
            _remember(state, token)
        return tokens

    def logprobs(
        self, logits: Tensor, slots: Sequence[int], tokens: Sequence[int]
    ) -> list[TokenLogprobs | None]:
        """Report on the tokens just drawn, for the slots whose params ask for it."""
        wanted = [self._slots[slot].params.logprobs for slot in slots]
        rows = [i for i, n_top in enumerate(wanted) if n_top is not None]
        reports: list[TokenLogprobs | None] = [None] * len(slots)
        if rows:
            most = max(wanted[i] or 0 for i in rows)
            found = token_logprobs(logits[rows], [tokens[i] for i in rows], most)
            for i, report in zip(rows, found, strict=True):
                reports[i] = replace(report, top=report.top[: wanted[i]])
        return reports


def _adjust(logits: Tensor, state: _Slot) -> Tensor:
    params = state.params
    if state.n_drawn < params.min_tokens and len(state.ending_ids):
        logits = logits.index_fill(0, state.ending_ids, -torch.inf)
    if state.seen is not None:
        logits = filters.repetition_penalty(logits, state.seen, params.repetition_penalty)
    if state.counts is not None:
        logits = filters.output_penalties(
            logits, state.counts, params.presence_penalty, params.frequency_penalty
        )
    return logits


def _filter(logits: Tensor, best: int, params: SamplingParams) -> Tensor:
    """One row after temperature and filters; `best` is its most likely token."""
    assert params.temperature is not None, "the engine resolves the default temperature"
    # The best logit becomes 0 first: a tiny temperature must not overflow float32.
    logits = (logits - logits[best]) / params.temperature
    if params.top_k is not None:
        logits = filters.top_k(logits, params.top_k)
    return filters.min_p(filters.top_p(logits, params.top_p), params.min_p)


def _remember(state: _Slot, token: int) -> None:
    state.n_drawn += 1
    if state.seen is not None:
        state.seen[token] = True
    if state.counts is not None:
        state.counts[token] += 1
