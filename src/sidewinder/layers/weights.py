"""A rank's weights, seen by one part of the model at a time."""

from collections.abc import Mapping

from torch import Tensor

from sidewinder.packing import PackedWeight
from sidewinder.quantise import QuantisedWeight

Weight = Tensor | QuantisedWeight | PackedWeight


def rows_of(weight: Weight, which: slice) -> Weight:
    """Some outputs of a matrix."""
    return weight.rows(which) if isinstance(weight, PackedWeight) else weight[which]


def columns_of(weight: Weight, which: slice) -> Weight:
    """Some inputs of a matrix that is not in integers."""
    if isinstance(weight, PackedWeight):
        return weight.columns(which)
    assert isinstance(weight, Tensor), "groups are not cut"
    return weight[:, which]


class Weights:
    """The weights whose names start with a prefix, by the rest of the name.

    Args:
        tensors: all of the rank's weights, by full name (docs/architecture.md).
        prefix: what this view leaves out, for example `layers.3.mixer.`.
    """

    def __init__(self, tensors: Mapping[str, Weight], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    @property
    def name(self) -> str:
        """What the view is of: its prefix without the final dot."""
        return self._prefix.removesuffix(".")

    def __getitem__(self, name: str) -> Tensor:
        weight = self.matrix(name)
        assert isinstance(weight, Tensor), f"{self._prefix}{name} is not a plain tensor"
        return weight

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def get(self, name: str) -> Tensor | None:
        """The weight, or None where this model has none (biases)."""
        weight = self._tensors.get(self._prefix + name)
        assert weight is None or isinstance(weight, Tensor), f"{self._prefix}{name} is a matrix"
        return weight

    def matrix(self, name: str) -> Weight:
        """A matrix that is only used by `ops.linear`, and so may be in integers or packed."""
        return self._tensors[self._prefix + name]

    def under(self, prefix: str) -> "Weights":
        """The view one level further down; `prefix` without its final dot."""
        return Weights(self._tensors, f"{self._prefix}{prefix}.")
