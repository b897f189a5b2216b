"""Models with other sums (or rotated) beside the exact one, on every rank, over a text."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sidewinder.agreement import Agreement, Comparison, Variant
from sidewinder.collectives.base import Collectives, Pending
from sidewinder.collectives.quantised.all_reduce import quantised
from sidewinder.collectives.quantised.policy import EXACT, Policy, policy_of
from sidewinder.collectives.wrapper import Wrapper
from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.engine.loading import load_weights
from sidewinder.models.registry import build_model
from sidewinder.parallel.devices import DTYPES
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.launch import start_executor

TARGET = "sidewinder.evaluation:Comparer"
MOST_AT_ONCE = 16
"""Policies that one pass over the text compares: each has a state, and a window's activations."""


class SwitchedSums(Wrapper):
    """`inner`, with deltas summed by the policy that was chosen last: one model, many policies.

    Args:
        inner: moves the bytes; exact, as deltas are until `choose`.
        config: the model's.
    """

    def __init__(self, inner: Collectives, config: ModelConfig) -> None:
        super().__init__(inner)
        self._config = config
        self._chosen = inner

    def choose(self, policy: Policy) -> None:
        """Sum by `policy` from now on."""
        self._chosen = quantised(self._inner, policy, self._config)

    def all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Tensor:
        return self._chosen.all_reduce_delta(x, site, n_decodes)

    def start_all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Pending:
        return self._chosen.start_all_reduce_delta(x, site, n_decodes)

    def is_exact(self, site: str) -> bool:
        return self._chosen.is_exact(site)


class Comparer:
    """One rank of a comparison; built by the executor in place of a `Runner`.

    The policies run on the weights that `engine` asks for, rotated or not. They are compared with
    exact sums, of the plain weights or of the same ones.

    Args:
        engine: `device`, `dtype` resolved; `model` is a local folder.
        model: the architecture.
        tp: which rank of how many.
        collectives: the group of `tp`; exact.
    """

    def __init__(
        self, engine: EngineConfig, model: ModelConfig, tp: TensorParallel, collectives: Collectives
    ) -> None:
        dtype, device = DTYPES[engine.dtype], torch.device(engine.device)
        self._engine = engine
        self._sums = SwitchedSums(collectives, model)
        weights = load_weights(engine, model, tp, dtype, device)
        self._model = self._plain = build_model(model, tp, weights, self._sums)
        if engine.rotate:
            plain = load_weights(replace(engine, rotate=False), model, tp, dtype, device)
            self._plain = build_model(model, tp, plain, collectives)

    def start(self, policies: Sequence[dict[str, Any]], window: int, same_weights: bool) -> None:
        """Begin a pass.

        Args:
            policies: as in policy files.
            window: most tokens of a call of `run`.
            same_weights: compare with exact sums of the same weights, not of the plain ones.
        """
        parsed = [Policy.parse(values, f"policy {i}") for i, values in enumerate(policies)]
        variants = [Variant(self._model, partial(self._sums.choose, each)) for each in parsed]
        self._comparison = Comparison(
            Variant(
                self._model if same_weights else self._plain,
                partial(self._sums.choose, policy_of(EXACT)),
            ),
            variants,
            window,
            DTYPES[self._engine.state_dtype],
            answers=self._sums.tp.rank == 0 or self._engine.launch == "torchrun",
        )

    def run(self, tokens: Sequence[int]) -> None:
        """One window of the text."""
        self._comparison.run(tokens)

    def result(self) -> list[Agreement]:
        """The figures of each policy since `start`."""
        return self._comparison.result()


def compare_policies(
    engine: EngineConfig,
    model: ModelConfig,
    policies: Sequence[Policy],
    token_ids: Sequence[int],
    window: int,
    same_weights: bool = False,
) -> list[Agreement]:
    """What each policy of sums changes in the model's predictions of a text.

    The text is cut into windows; every window starts with empty state.

    Args:
        engine: `model` is a local folder; its own `all_reduce` plays no part.
        model: the architecture.
        policies: the sums to compare with exact ones.
        token_ids: the text.
        window: tokens of a window.
        same_weights: see `Comparer.start`.

    Raises:
        ValueError: for a window or a text that predicts nothing.
    """
    if window < 2 or len(token_ids) < 2:
        raise ValueError(
            "one token predicts nothing; give a text and windows of two tokens or more"
        )
    executor = start_executor(engine, model, TARGET)
    found: list[Agreement] = []
    try:
        with tqdm(
            total=-(-len(policies) // MOST_AT_ONCE) * len(token_ids),
            desc="tokens",
            unit="",
            disable=not engine.progress,
        ) as bar:
            for first in range(0, len(policies), MOST_AT_ONCE):
                group = [policy.to_json() for policy in policies[first : first + MOST_AT_ONCE]]
                executor.call("start", group, window, same_weights)
                for tokens in windows(token_ids, window):
                    executor.call("run", tokens)
                    bar.update(len(tokens))
                found += executor.call("result")
    finally:
        executor.close()
    return found


def windows(token_ids: Sequence[int], window: int) -> Iterator[list[int]]:
    """Parts of two tokens and more: the last token alone predicts nothing, and is left out."""
    for start in range(0, len(token_ids) - 1, window):
        yield list(token_ids[start : start + window])
