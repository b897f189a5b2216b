"""Measurements: what `sidewinder bench` runs. Figures stand beside the machine's ceilings."""
