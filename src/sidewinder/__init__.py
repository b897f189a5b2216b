"""Sidewinder: tensor-parallel inference for selective state-space models."""

__version__ = "0.1.0"
