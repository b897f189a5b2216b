"""A quantised checkpoint's tensors as the matrices that they stand for."""

from collections.abc import Mapping

from sidewinder.checkpoint.quantised import bitsandbytes, scaled, transposed
from sidewinder.checkpoint.quantised.config import Quantisation
from sidewinder.checkpoint.quantised.parts import Parts
from sidewinder.checkpoint.stored import PLAIN_DTYPES, StoredTensor

_MATRICES = {
    "gptq": (transposed.PARTS, transposed.gptq_matrix),
    "awq": (transposed.PARTS, transposed.awq_matrix),
    "bitsandbytes": (bitsandbytes.PARTS, bitsandbytes.matrix),
}
"""By method: names of a matrix's parts, and how it is put together; others have `scaled`'s."""

OF_ACTIVATIONS = {
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "output_scale",
    "output_zero_point", "q_scale", "k_scale", "v_scale", "k_zero_point", "v_zero_point",
}  # fmt: skip
"""Of what is not rounded here: read by nobody."""


def dequantised(
    tensors: Mapping[str, StoredTensor], quantisation: Quantisation
) -> dict[str, StoredTensor]:
    """`tensors` by the names of a checkpoint that is not quantised: in place of a matrix's codes
    and scales there is a view that widens what is read of it, to float32.

    Raises:
        ValueError: if a matrix's parts are incomplete, or do not fit each other or `quantisation`.
    """
    known, matrix = _MATRICES.get(quantisation.method, (scaled.PARTS, scaled.scaled_matrix))
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        module, part = _split(name)
        modules.setdefault(module, {})[part] = tensor
    found: dict[str, StoredTensor] = {}
    for module, tensors_of in modules.items():
        rest = dict(tensors_of)
        parts = {name: rest.pop(name) for name in sorted(known & rest.keys())}
        if set(parts) == {"weight"} and parts["weight"].dtype in PLAIN_DTYPES:
            rest |= parts
        elif parts:
            found[f"{module}.weight"] = matrix(Parts(module, parts), quantisation)
        found |= {f"{module}.{name}": tensor for name, tensor in rest.items()}
    return _without_activations(found)


def _split(name: str) -> tuple[str, str]:
    """A module and the name of its tensor; bitsandbytes has some that belong to a `weight`."""
    module, found, part = name.partition(".weight.")
    if found:
        return module, f"weight.{part}"
    module, _, part = name.rpartition(".")
    return module, part


def _without_activations(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """All but the scales of activations, keys and values of modules that there are."""
    modules: set[str] = set()
    scales = {name for name in tensors if name.rpartition(".")[2] in OF_ACTIVATIONS}
    for name in tensors.keys() - scales:
        parent = name.rpartition(".")[0]
        while parent and parent not in modules:
            modules.add(parent)
            parent = parent.rpartition(".")[0]
    unused = {name for name in scales if name.rpartition(".")[0] in modules}
    return {name: tensor for name, tensor in tensors.items() if name not in unused}
