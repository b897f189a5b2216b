"""What devices can do, from their makers' data sheets."""

from dataclasses import dataclass

import torch

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """One rank's device and its peaks; kernels reach a part of them (`Calibration`).

    Attributes:
        name: as users write it.
        title: the product.
        memory_bytes: of one device.
        bytes_per_s: memory bandwidth.
        flops_16bit: dense matrix products in bfloat16 or float16, without sparsity.
        flops_32bit: float32 outside the matrix units (torch's default for float32).
        special_per_s: exponentials and the like.
        cuts_scans: long sequences are scanned in chunks, whose ends are computed in a first pass.
        fuses_scans: for a few single tokens the scan takes dt_proj and the norms before it along,
            and a decode step is a graph that also draws.
        capability: NVIDIA's compute capability, times ten; 0 for what is no GPU.
        multiprocessors: of a GPU.
    """

    name: str
    title: str
    memory_bytes: float
    bytes_per_s: float
    flops_16bit: float
    flops_32bit: float
    special_per_s: float
    cuts_scans: bool = True
    fuses_scans: bool = True
    capability: int = 0
    multiprocessors: int = 0

    def flops(self, dtype: torch.dtype) -> float:
        """Peak of matrix products in `dtype`."""
        return self.flops_32bit if dtype == torch.float32 else self.flops_16bit


def _gpu(
    name: str,
    title: str,
    capability: int,
    memory_gib: float,
    gb_per_s: float,
    tflops_16bit: float,
    tflops_32bit: float,
    multiprocessors: int,
    gigahertz: float,
) -> Device:
    """A GPU; its special-function units give 16 results per multiprocessor and clock."""
    return Device(
        name,
        title,
        memory_gib * GIB,
        gb_per_s * 1e9,
        tflops_16bit * 1e12,
        tflops_32bit * 1e12,
        16 * multiprocessors * gigahertz * 1e9,
        capability=capability,
        multiprocessors=multiprocessors,
    )


DEVICES = {
    device.name: device
    for device in (
        _gpu("a10", "NVIDIA A10", 86, 24, 600, 125, 31.2, 72, 1.695),
        _gpu("rtx4090", "GeForce RTX 4090", 89, 24, 1008, 165.2, 82.6, 128, 2.52),
        _gpu("a6000", "RTX A6000", 86, 48, 768, 154.8, 38.7, 84, 1.8),
        _gpu("l40s", "NVIDIA L40S", 89, 48, 864, 362, 91.6, 142, 2.52),
        _gpu("l4", "NVIDIA L4", 89, 24, 300, 121, 30.3, 58, 2.04),
        _gpu("a100-40gb", "A100 SXM 40 GB", 80, 40, 1555, 312, 19.5, 108, 1.41),
        _gpu("a100", "A100 SXM 80 GB", 80, 80, 2039, 312, 19.5, 108, 1.41),
        _gpu("h100", "H100 SXM", 90, 80, 3350, 989, 66.9, 132, 1.83),
        _gpu("h200", "H200 SXM", 90, 141, 4800, 989, 66.9, 132, 1.83),
        _gpu("b200", "B200", 100, 180, 7700, 2250, 75, 148, 1.85),
    )
}
"""By name; dense rates of data sheets, boost clocks."""


def device_of(name: str) -> Device:
    """The device of that name.

    Raises:
        ValueError: for an unknown one; lists the known.
    """
    if name not in DEVICES:
        raise ValueError(f"--gpu {name!r} is unknown; known: {', '.join(DEVICES)}")
    return DEVICES[name]


def device_of_product(product: str) -> Device | None:
    """The device that a driver calls `product`, if it is one that we know."""
    words = product.lower().replace(" ", "")
    if "a100" in words and "40gb" in words:
        return DEVICES["a100-40gb"]
    names = [name for name in DEVICES if name in words]
    return DEVICES[max(names, key=len)] if names else None
