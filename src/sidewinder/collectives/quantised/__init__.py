"""Sums of few bits: which deltas are quantised (`policy`), and how (`all_reduce`)."""
