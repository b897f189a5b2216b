"""Replicas of an engine on Ray Serve, with routing to the one that holds a prefix's state.

`routing` and `relay` are plain Python; only `ray_serve` imports Ray (the `ray` extra).
"""
