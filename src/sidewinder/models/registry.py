"""Which model file serves which family."""

from collections.abc import Mapping

from sidewinder.collectives.base import Collectives
from sidewinder.config import ModelConfig
from sidewinder.layers.overlap import PLAIN, Overlap
from sidewinder.layers.weights import Weight
from sidewinder.models.bamba import Bamba
from sidewinder.models.base import Model
from sidewinder.models.falcon_h1 import FalconH1
from sidewinder.models.falcon_mamba import FalconMamba
from sidewinder.models.granite_hybrid import GraniteHybrid
from sidewinder.models.jamba import Jamba
from sidewinder.models.mamba import Mamba
from sidewinder.models.mamba2 import Mamba2
from sidewinder.models.nemotron_h import NemotronH
from sidewinder.models.zamba import Zamba
from sidewinder.models.zamba2 import Zamba2
from sidewinder.parallel.group import TensorParallel

MODELS: dict[str, type[Model]] = {
    "mamba": Mamba,
    "falcon_mamba": FalconMamba,
    "mamba2": Mamba2,
    "zamba": Zamba,
    "zamba2": Zamba2,
    "bamba": Bamba,
    "granitemoehybrid": GraniteHybrid,
    "nemotron_h": NemotronH,
    "falcon_h1": FalconH1,
    "jamba": Jamba,
}


def build_model(
    config: ModelConfig,
    tp: TensorParallel,
    weights: Mapping[str, Weight],
    collectives: Collectives,
    overlap: Overlap = PLAIN,
) -> Model:
    """This rank's part of the model that `config` describes.

    Args:
        config: the architecture.
        tp: which rank of how many.
        weights: this rank's, from `checkpoint.reader`.
        collectives: the group of `tp`; every rank builds at the same time (subgroups are made).
        overlap: which sums are hidden behind computation; the same on every rank.

    Raises:
        ValueError: for a family without a model file (lists those with one), or a `tp` that the
            model cannot be split over (lists those it can).
    """
    if config.family not in MODELS:
        raise ValueError(
            f"model family {config.family!r} is not supported; supported: {', '.join(MODELS)}"
        )
    return MODELS[config.family](config, tp, weights, collectives, overlap)
