"""The extension module of C++ kernels."""

from typing import Any

module: Any
"""`sidewinder._native`, or None where it was not built or cannot be loaded."""
try:
    from sidewinder import _native as module
except ImportError:
    module = None
