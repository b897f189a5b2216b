"""The extension module of C++ kernels, which may not be built."""

from importlib import import_module
from typing import Any

from torch import Tensor


def _load() -> tuple[Any, str]:
    """The module, or None and why.

    Raises:
        ValueError: if SIDEWINDER_ISA names a level that this processor does not run.
    """
    try:
        found = import_module("sidewinder._native")
    except ModuleNotFoundError:
        return None, "it was built without them: no C++ compiler?"
    except ImportError as error:
        if "SIDEWINDER_ISA" in str(error):
            raise ValueError(str(error)) from error
        return None, str(error)
    found.set_tensor_type(Tensor, Tensor.__dlpack_c_exchange_api__)
    return found, ""


module: Any
"""`sidewinder._native`, or None where it was not built or cannot be loaded."""
missing: str
"""Why there is none."""
module, missing = _load()
