"""Figures of the state cache."""

from dataclasses import dataclass


@dataclass
class CacheCounters:
    """Totals since the start.

    Attributes:
        queries, hits: requests that looked for a prefix, and that resumed one.
        query_tokens, cached_tokens: their prompt tokens, and those that were not run again.
        hits_device, hits_host, hits_disk: hits by the tier that held the state.
        saved, evicted: snapshots taken, and dropped from memory for others.
        disk_writes, disk_errors: snapshots written, and writes or reads that failed.
    """

    queries: int = 0
    hits: int = 0
    query_tokens: int = 0
    cached_tokens: int = 0
    hits_device: int = 0
    hits_host: int = 0
    hits_disk: int = 0
    saved: int = 0
    evicted: int = 0
    disk_writes: int = 0
    disk_errors: int = 0


@dataclass
class CacheStats(CacheCounters):
    """Totals, and what is held at this moment; bytes in memory are those of the largest rank.

    Attributes:
        snapshots_device, snapshots_host, snapshots_disk: in each tier (one may also be on disk).
        device_bytes, host_bytes, disk_bytes: in use.
        device_bytes_limit, host_bytes_limit, disk_bytes_limit: 0 where a tier is off.
        kv_pages_used: pages in use, by sequences or snapshots (hybrids).
    """

    snapshots_device: int = 0
    snapshots_host: int = 0
    snapshots_disk: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    device_bytes_limit: int = 0
    host_bytes_limit: int = 0
    disk_bytes_limit: int = 0
    kv_pages_used: int = 0
