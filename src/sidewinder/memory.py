"""How this process asks the system for memory. Without the native module nothing changes."""

from types import ModuleType

from torch import Tensor

native: ModuleType | None
try:
    from sidewinder import _native as native
except ImportError:
    native = None


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, since every step asks for the same again (glibc)."""
    if native is not None:
        native.keep_freed_memory()


def prefer_huge_pages(tensor: Tensor) -> None:
    """Ask for huge pages for a new CPU tensor that was not written yet (Linux): fewer misses."""
    if native is not None:
        native.prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
