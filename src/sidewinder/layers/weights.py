"""A rank's weights, seen by one part of the model at a time."""

from collections.abc import Mapping

from torch import Tensor


class Weights:
    """The weights whose names start with a prefix, by the rest of the name.

    Args:
        tensors: all of the rank's weights, by full name (docs/architecture.md).
        prefix: what this view leaves out, for example `layers.3.mixer.`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    @property
    def name(self) -> str:
        """What the view is of: its prefix without the final dot."""
        return self._prefix.removesuffix(".")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def get(self, name: str) -> Tensor | None:
        """The weight, or None where this model has none (biases)."""
        return self._tensors.get(self._prefix + name)

    def under(self, prefix: str) -> "Weights":
        """The view one level further down; `prefix` without its final dot."""
        return Weights(self._tensors, f"{self._prefix}{prefix}.")
