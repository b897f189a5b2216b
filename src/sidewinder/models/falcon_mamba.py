"""Falcon-Mamba (`FalconMambaForCausalLM`)."""

from sidewinder.models.mamba import Mamba


class FalconMamba(Mamba):
    """Mamba with weightless norms on dt, B and C (`config.mixer_norm_eps`), inside the mixer."""
