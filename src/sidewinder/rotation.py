"""An orthogonal rotation of the residual stream, folded into the weights at load.

A residual stream that is read only through RMS norms can be rotated for free: a norm does not
change under an orthogonal matrix once its gain sits in the projections that follow it. What writes
the stream (embedding, output projections, their biases) is rotated, what reads it (norm gain, input
projections, `lm_head`) is rotated back, and the function stays what it was, to rounding. What
crosses ranks is then the rotated delta, in which no channel stands out, so that a codec whose
elements share a scale loses less (docs/quantised-all-reduce.md).

Everything below acts along `d_model`, which no rank splits: each rank folds its own shard.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sidewinder.config import ModelConfig

Rotate = Callable[[Tensor], Tensor]
"""`[..., d_model] -> [..., d_model]`: the last dimension times an orthogonal matrix, float32."""

SEED = 0
"""Of the signs; a constant, so that every rank and every start fold the same rotation."""


def block_hadamard(width: int, seed: int = SEED) -> Rotate:
    """Random signs, Hadamard matrices on blocks of channels, a cosine transform over the blocks.

    Blocks have the largest power of two that divides `width`. Where that is less than `width`,
    blocks alone would keep what is large in one of them there; so the channels at the same place of
    all blocks are mixed too. Together, no channel enters another with more than `sqrt(2 / width)`.

    Args:
        width: `d_model`.
        seed: of the signs.
    """
    block = width & -width
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (width,), generator=generator).float() * 2 - 1
    over_blocks = _cosines(width // block)

    def rotate(x: Tensor) -> Tensor:
        assert x.shape[-1] == width, f"{x.shape[-1]} channels are not {width}"
        rows: Tensor = (x.float() * signs.to(x.device)).reshape(-1, block)
        blocks = _hadamard(rows).view(-1, width // block, block)
        return (over_blocks.to(x.device) @ blocks).view(x.shape)

    return rotate


def _cosines(n: int) -> Tensor:
    """The orthogonal cosine transform (DCT-II), `[n, n]` in float32."""
    places = torch.arange(n, dtype=torch.float64)
    waves = torch.cos(math.pi / n * torch.outer(places, places + 0.5)) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves.float()


def _hadamard(x: Tensor) -> Tensor:
    """`[rows, n]` times the orthogonal Hadamard matrix of size `n`, a power of two."""
    rows, n = x.shape
    half = 1
    while half < n:
        pairs = x.reshape(rows, n // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.stack([first + second, first - second], dim=2).view(rows, n)
        half *= 2
    return x / math.sqrt(n)


def fold_rotation(
    weights: Mapping[str, Tensor], config: ModelConfig, rotate: Rotate
) -> dict[str, Tensor]:
    """A rank's weights with the residual stream rotated; the model's function is unchanged.

    Gains of the norms that read the stream move into the projections behind them and become ones.
    So the logits' matrix is no longer the embedding: a tied model gets a `lm_head.weight` of its
    own, at the memory of one more table.

    Args:
        weights: by our names (docs/architecture.md); not in int8.
        config: the architecture.
        rotate: along `d_model`, for example `block_hadamard(config.d_model)`.

    Returns:
        All weights, in the dtypes they had; computed in float32 and rounded once.
    """
    fold = _Fold(weights, rotate)
    if config.tie_embeddings:
        fold.weights["lm_head.weight"] = weights["embedding.weight"]
    fold.reads("final_norm.weight", ["lm_head.weight"])
    fold.replace("embedding.weight", rotate)
    for layer in range(config.n_layers):
        _fold_layer(fold, config, layer)
    if config.attention is not None and config.attention.shared:
        # The block reads the stream and the embedding side by side, and its own sums are rotated
        # too; a layer's `linear` reads the second of them and writes the stream.
        for block, layers in config.attention.blocks.items():
            adapters = [f"layers.{layer}.adapter" for layer in layers]
            inputs = [f"{block}.attention.{name}.weight" for name in "qkv"]
            inputs += [f"{adapter}.{name}.A.weight" for adapter in adapters for name in "qkv"]
            fold.reads(f"{block}.input_norm.weight", fold.present(inputs))
            fold.writes(f"{block}.attention.o")
            beside = [f"{adapter}.gate_up.A.weight" for adapter in adapters]
            _fold_mlp(fold, f"{block}.pre_ff_norm.weight", [f"{block}.mlp"], beside)
        for layer in config.attention.layers:
            fold.replace(f"layers.{layer}.linear.weight", rotate)
            fold.writes(f"layers.{layer}.linear")
    return fold.weights


def _fold_layer(fold: "_Fold", config: ModelConfig, layer: int) -> None:
    """Mixer, attention or both behind one norm, and the layer's own MLP, which may be all there
    is."""
    prefix, inputs = f"layers.{layer}", []
    if layer in config.mixer_layers:
        inputs = [f"{prefix}.mixer.in_proj.weight"]
        fold.writes(f"{prefix}.mixer.out_proj")
    if layer in config.attention_layers:
        inputs += [f"{prefix}.attention.{name}.weight" for name in "qkv"]
        fold.writes(f"{prefix}.attention.o")
    if inputs:
        fold.reads(f"{prefix}.norm.weight", inputs)
    second = f"{prefix}.norm.weight" if config.single_parts else f"{prefix}.pre_ff_norm.weight"
    if layer in config.mlp_layers:
        _fold_mlp(fold, second, [f"{prefix}.mlp"])
    elif layer in config.expert_layers:
        assert config.experts is not None
        names = [
            *range(config.experts.n_experts),
            *(["shared"] if config.experts.shared_d_ff else []),
        ]
        if config.experts.d_latent:  # Experts see no stream that is rotated.
            fold.writes(f"{prefix}.experts.from_latent")
            names = names[config.experts.n_experts :]
        mlps = [f"{prefix}.experts.{name}" for name in names]
        others = [f"{prefix}.experts.{name}.weight" for name in ("router", "to_latent")]
        _fold_mlp(fold, second, mlps, fold.present(others))


def _fold_mlp(fold: "_Fold", norm: str, mlps: Sequence[str], others: Sequence[str] = ()) -> None:
    """MLPs that read the same normed stream, and others that do."""
    inputs = [f"{mlp}.{name}.weight" for mlp in mlps for name in ("gate", "up")]
    fold.reads(norm, fold.present([*inputs, *others]))
    for mlp in mlps:
        fold.writes(f"{mlp}.down")


class _Fold:
    """Weights on the way: `weights` starts as what the model has, and ends rotated."""

    def __init__(self, weights: Mapping[str, Tensor], rotate: Rotate) -> None:
        self.weights = dict(weights)
        self._rotate = rotate
        self._width = weights["embedding.weight"].shape[1]

    def present(self, names: Sequence[str]) -> list[str]:
        """Those that this model has."""
        return [name for name in names if name in self.weights]

    def replace(self, name: str, change: Callable[[Tensor], Tensor]) -> None:
        """`change` of the weight in float32, in the weight's own dtype."""
        old = self.weights[name]
        self.weights[name] = change(old.float()).to(old.dtype).contiguous()

    def reads(self, norm: str, projections: Sequence[str]) -> None:
        """The projections take over the gain of the norm before them, and read what is rotated."""
        gain = self.weights[norm].float()
        self.weights[norm] = torch.ones_like(self.weights[norm])
        for name in projections:
            self.replace(name, lambda weight: self._along_inputs(weight * gain))

    def writes(self, projection: str) -> None:
        """The outputs of a projection are rotated, its bias with them."""
        for name in (f"{projection}.weight", f"{projection}.bias"):
            if name in self.weights:
                self.replace(
                    name, lambda weight: self._rotate(weight.movedim(0, -1)).movedim(-1, 0)
                )

    def _along_inputs(self, weight: Tensor) -> Tensor:
        """The columns rotated; where they are several streams side by side, each of them."""
        streams = weight.view(len(weight), -1, self._width)
        return self._rotate(streams).view(weight.shape)
