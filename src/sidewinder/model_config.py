"""What a model is: its SSM mixers, and what a hybrid has beside them."""

from dataclasses import dataclass
from typing import Literal

Family = Literal[
    "mamba",
    "falcon_mamba",
    "mamba2",
    "zamba",
    "zamba2",
    "bamba",
    "granitemoehybrid",
    "nemotron_h",
    "falcon_h1",
    "jamba",
]
Layout = Literal["transformers", "authors", "gguf"]


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary position embeddings (Su et al. 2021) of the first channels of every head.

    Attributes:
        theta: base of the wavelengths.
        width: channels that share the range of wavelengths; an odd width rotates one channel more.
    """

    theta: float
    width: int


@dataclass(frozen=True)
class AttentionConfig:
    """The attention of a hybrid.

    Attributes:
        layers: indices of the layers that attend, in order; one KV cache each.
        n_heads, n_kv_heads, head_dim: query heads, key-value heads, width of a head.
        scale: of the scores.
        shared: these layers call one block, of one set of weights, beside their own mixer (Zamba);
            otherwise each has attention of its own instead of a mixer.
        parallel: not instead of the mixer but beside it: both read one norm, and what both make
            is one delta (Falcon-H1).
        use_bias: of the projections q, k, v and o.
        rotary: how positions enter queries and keys; None: not at all.
        n_blocks: how many shared blocks the calls take in turn.
        adapter_rank: of what each call of a shared block adds to q, k and v (Zamba2); 0: nothing.
    """

    layers: tuple[int, ...]
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    shared: bool = False
    parallel: bool = False
    use_bias: bool = False
    rotary: RotaryConfig | None = None
    n_blocks: int = 1
    adapter_rank: int = 0

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """The shared blocks by the names of their parameters, each with the layers that call it."""
        if not self.shared:
            return {}
        if self.n_blocks == 1:
            return {"shared": self.layers}
        return {f"shared.{n}": self.layers[n :: self.n_blocks] for n in range(self.n_blocks)}


@dataclass(frozen=True)
class MLPConfig:
    """The MLP: of the shared block where attention is shared, else of layers.

    Attributes:
        d_ff: inner width.
        activation: one of `activations.ACTIVATIONS`; without a gate `SQUARED_RELU`.
        use_bias: of its projections.
        gated: what is activated is a gate, and multiplies a second projection.
        layers: indices of the layers that have it, in order; None: all that have no experts.
        adapter_rank: of what each call of a shared block adds to gate and up (Zamba2); 0: nothing.
    """

    d_ff: int
    activation: str
    use_bias: bool = False
    gated: bool = True
    layers: tuple[int, ...] | None = None
    adapter_rank: int = 0


@dataclass(frozen=True)
class RouterConfig:
    """How a token's experts are chosen, and what their shares in the result are (`ops.route`).

    Attributes:
        n_chosen: experts of a token.
        scores: of an expert, from its logit: the softmax over all experts, or the sigmoid.
        has_bias: something is added to the scores when experts are chosen, and not to the shares.
        normalised: the shares of a token's experts add up to `scale`.
        scale: of the shares.
        n_groups, n_groups_chosen: groups of experts, and how many of them a token may choose from.
    """

    n_chosen: int
    scores: Literal["softmax", "sigmoid"] = "softmax"
    has_bias: bool = False
    normalised: bool = True
    scale: float = 1.0
    n_groups: int = 1
    n_groups_chosen: int = 1


@dataclass(frozen=True)
class ExpertsConfig:
    """MLPs of which a router chooses a few for each token, and maybe one that every token has.

    Attributes:
        layers: indices of the layers that have them, in order.
        n_experts: how many a layer has.
        d_ff: inner width of each.
        router: how they are chosen.
        activation, gated: as in `MLPConfig`, of all of them.
        shared_d_ff: inner width of the MLP that every token has; 0: there is none.
        shared_bias: of that MLP's projections.
        d_latent: width of the narrower stream that experts read and write, between one projection
            to it and one back; 0: theirs is the model's. Router and shared MLP read the model's.
        latent_bias: of those two projections.
    """

    layers: tuple[int, ...]
    n_experts: int
    d_ff: int
    router: RouterConfig
    activation: str
    gated: bool = True
    shared_d_ff: int = 0
    shared_bias: bool = False
    d_latent: int = 0
    latent_bias: bool = False


@dataclass(frozen=True)
class WeightMultipliers:
    """What a checkpoint leaves out of its weights (maximal update parametrisation): they are
    multiplied by these when they are read, so that no step has anything to multiply.

    Attributes:
        mixer_in, mixer_out: of what enters the mixer's `in_proj`, and of what `out_proj` makes.
        mixer_bands: of what `in_proj` makes, bias included: its bands z, x, B, C, dt.
        attention_in, attention_out: of what enters q, k and v, and of what `o` makes.
        mlp_gate, mlp_down: of what the MLP's gate and `down` make.
    """

    mixer_in: float = 1.0
    mixer_out: float = 1.0
    mixer_bands: tuple[float, ...] = (1.0,) * 5
    attention_in: float = 1.0
    attention_out: float = 1.0
    mlp_gate: float = 1.0
    mlp_down: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """One model's architecture. Sizes are global; a rank's are in `sharding.dims.LocalDims`.

    Attributes:
        family, layout: which model file, and which checkpoint naming.
        vocab_size: rows of the embedding (authors' layout: already padded up).
        d_model, n_layers, d_inner, d_state, d_conv: as in the papers.
        dt_rank: rank of the dt projection; 0 for Mamba-2 mixers.
        n_heads: Mamba-1 kinds: groups of channels with their own dt, B, C (1, Zamba 2 or more);
            Mamba-2: SSM heads. `head_dim = d_inner / n_heads`.
        n_groups: Mamba-2: groups of B and C; else 1.
        norm_eps: of the layer norms and the final norm (and Mamba-2's gated norm, but
            Zamba2's).
        mixer_norm_eps: of the norms on dt, B, C (Falcon-Mamba, Jamba); Zamba2's gated norm; None
            elsewhere.
        mixer_norm_weights: the norms on dt, B, C have weights (Jamba).
        use_bias, use_conv_bias: of in_proj/out_proj, and of the convolution.
        gated_norm: Mamba-2: whether the mixer has its gated RMSNorm (`rms_norm`).
        norm_before_gate: Mamba-2, authors' option; transformers' order is gate, then norm.
        time_step_limit: Mamba-2: dt is clamped to this range.
        residual_in_fp32: the residual stream is float32 whatever the weights are.
        tie_embeddings: `lm_head` is the embedding.
        dtype: the checkpoint's own dtype ("float32", "bfloat16", "float16").
        eos_token_ids: tokens of the checkpoint that end a text.
        attention, mlp, experts: of hybrids; None where the model has none.
        single_parts: a layer is one of mixer, attention, MLP and experts; otherwise MLP or experts,
            if the model has them, follow the mixer or the attention of each layer.
        embedding_multiplier: of the embedding, where it enters the residual stream.
        residual_multiplier: of every delta, where it enters the residual stream.
        logits_divisor: of the logits.
        weight_multipliers: of the weights, where they are read from a checkpoint (Falcon-H1).
    """

    family: Family
    layout: Layout
    vocab_size: int
    d_model: int
    n_layers: int
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    n_heads: int
    n_groups: int
    norm_eps: float
    mixer_norm_eps: float | None
    use_bias: bool
    use_conv_bias: bool
    gated_norm: bool
    norm_before_gate: bool
    time_step_limit: tuple[float, float]
    residual_in_fp32: bool
    tie_embeddings: bool
    dtype: str
    eos_token_ids: tuple[int, ...]
    attention: AttentionConfig | None = None
    mlp: MLPConfig | None = None
    experts: ExpertsConfig | None = None
    mixer_norm_weights: bool = False
    single_parts: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    weight_multipliers: WeightMultipliers = WeightMultipliers()

    @property
    def head_dim(self) -> int:
        """Channels of one Mamba head."""
        return self.d_inner // self.n_heads

    @property
    def gated_norm_eps(self) -> float:
        """Of Mamba-2's gated norm."""
        return self.norm_eps if self.mixer_norm_eps is None else self.mixer_norm_eps

    @property
    def is_mamba2(self) -> bool:
        """Whether the mixers are Mamba-2's; otherwise they are of a Mamba-1 kind."""
        return self.dt_rank == 0

    @property
    def is_parallel(self) -> bool:
        """Whether layers have attention beside their mixer, and one delta of both."""
        return self.attention is not None and self.attention.parallel

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers with attention of their own, in order."""
        return () if self.attention is None or self.attention.shared else self.attention.layers

    @property
    def mlp_layers(self) -> tuple[int, ...]:
        """Indices of the layers with an MLP of their own, in order."""
        if self.mlp is None or (self.attention is not None and self.attention.shared):
            return ()
        if self.mlp.layers is not None:
            return self.mlp.layers
        return tuple(layer for layer in range(self.n_layers) if layer not in self.expert_layers)

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Indices of the layers with experts, in order."""
        return () if self.experts is None else self.experts.layers

    @property
    def mixer_layers(self) -> tuple[int, ...]:
        """Indices of the layers with an SSM mixer, in order; each of these has a state."""
        instead = {*(() if self.is_parallel else self.attention_layers)}
        if self.single_parts:
            instead |= {*self.mlp_layers, *self.expert_layers}
        return tuple(layer for layer in range(self.n_layers) if layer not in instead)

    @property
    def n_mlp_calls(self) -> int:
        """How often a step runs an MLP."""
        if self.attention is not None and self.attention.shared:
            return len(self.attention.layers)
        return len(self.mlp_layers)
