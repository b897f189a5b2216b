"""Settings of all tests."""

import os

import torch
from hypothesis import settings

# Other processes share the cores of a test machine, so one example's time says nothing.
settings.register_profile("sidewinder", deadline=None)
settings.load_profile("sidewinder")

# Without a GPU, Triton's kernels run in its interpreter; it must be on before Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
