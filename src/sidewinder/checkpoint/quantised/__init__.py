"""Checkpoints whose matrices are stored in few bits: each is widened while it is read."""
