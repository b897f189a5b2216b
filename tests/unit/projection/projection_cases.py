"""What the tests of the projection share: settings, and kernels that reach every peak."""

import torch

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.devices import DEVICES
from sidewinder.projection.links import LINKS, Link
from sidewinder.projection.model import Setting

BF16 = torch.bfloat16
CONFIG = parse_model_config(SHAPES["mamba-2.8b"])
IDEAL = Calibration(*[1] * 9, kernel_s=0, product_s=0, row_s=0, update_s=0, host_s=0, launch_s=0)
FREE = Link("free", "free", 1e30, 0)


def setting(tp=2, link="pcie4", gpu="a6000", config=CONFIG, **changes):
    return Setting(config, tp, BF16, DEVICES[gpu], LINKS.get(link, FREE), **changes)
