"""The sections of `tools/gpu_suite.py`."""
