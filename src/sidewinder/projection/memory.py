"""Memory that a load needs on the rank that needs most."""

from dataclasses import dataclass

from sidewinder.parallel.group import TensorParallel
from sidewinder.planning import plan_report
from sidewinder.projection.model import Load, Setting
from sidewinder.quantise import SLICE_BYTES
from sidewinder.sharding.dims import LocalDims


@dataclass(frozen=True)
class Memory:
    """Bytes of the fullest rank.

    Attributes:
        weights, state, kv: of the model, of all sequences' states, of their keys and values.
        activations: of the largest step, estimated.
        reserve: for the driver and libraries.
        device: what the device has.
    """

    weights: float
    state: float
    kv: float
    activations: float
    reserve: float
    device: float

    @property
    def headroom(self) -> float:
        """What is left; below 0 the load does not fit."""
        used = self.weights + self.state + self.kv + self.activations + self.reserve
        return self.device - used


def project_memory(setting: Setting, load: Load) -> Memory:
    """Memory that `load` needs on the rank that needs most."""
    dtypes = setting.dtype, setting.state_dtype, setting.weight_dtype
    ranks = plan_report(setting.config, setting.tp, *dtypes)["ranks"]
    length = load.prompt + load.output
    return Memory(
        weights=max(rank["weight_bytes"] for rank in ranks),
        state=load.batch * max(rank["state_bytes_per_sequence"] for rank in ranks),
        kv=load.batch * length * max(rank["kv_bytes_per_token"] for rank in ranks),
        activations=_activation_bytes(setting, load),
        reserve=setting.calibration.reserve_bytes,
        device=setting.device.memory_bytes,
    )


def _activation_bytes(setting: Setting, load: Load) -> float:
    """A layer's tensors alive at once: residual, normed, delta; x and z, conv, dt, y of a mixer, or
    an MLP's gate, its activation and up, or what a chosen expert adds; logits; widened weights."""
    config, item = setting.config, setting.dtype.itemsize
    dims = LocalDims.of(config, TensorParallel(0, setting.tp))
    inner = max(5 * dims.d_inner_local, 3 * dims.d_ff_local, 3 * dims.shared_d_ff.size)
    if config.experts is not None:
        chosen = config.experts.router.n_chosen * (config.d_model + dims.expert_d_ff.size)
        inner = max(inner, chosen)
    tokens = min(load.batch * load.prompt, load.max_step_tokens)
    per_token = config.d_model * (8 + 2 * item) + inner * item
    logits = load.batch * config.vocab_size * (4 + item)
    widened = 0 if setting.weight_dtype == "auto" else SLICE_BYTES
    return float(tokens * per_token + logits + widened)
