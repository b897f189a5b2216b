"""States of prefixes that were run before, kept to be resumed (docs/state-cache.md).

`radix`, `boundaries`, `value`, `pages`, `ops`, `tiers`, `disk`, `stats` and `cache` are the
scheduler's: plain Python without tensors. `formats`, `layout`, `parts` and `store` are the ranks'.
"""
