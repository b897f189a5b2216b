"""Prometheus metrics, and the line about throughput that is logged now and then."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from sidewinder import __version__
from sidewinder.engine.async_engine import AsyncEngine
from sidewinder.llm import LLM

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_MEDIUM = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All metrics of one server; an `Observer` of its engine.

    Args:
        llm: sizes, ranks and counters.
        name: the served model's.
    """

    def __init__(self, llm: LLM, name: str) -> None:
        self.registry = CollectorRegistry()
        self._generated = Counter(
            "sidewinder_generated_tokens", "Tokens generated", registry=self.registry
        )
        self._requests = Counter(
            "sidewinder_requests",
            "Requests that ended, one per text: stop, length, abort or error",
            ["reason"],
            registry=self.registry,
        )
        self._responses = Counter(
            "sidewinder_http_responses", "HTTP responses", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._first = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token", _MEDIUM
        )
        self._between = self._histogram(
            "inter_token_seconds", "Between two tokens of a request", _SHORT
        )
        self._whole = self._histogram(
            "request_seconds", "From arrival to the end of a request that ran to its end", _LONG
        )
        self.n_generated = 0
        for reason in ("stop", "length", "abort", "error"):
            self._requests.labels(reason)
        ProcessCollector(registry=self.registry)
        self._state = StateCollector(llm, name)
        self.registry.register(self._state)

    def watch(self, engine: AsyncEngine) -> None:
        """Report on this engine's queue from now on."""
        self._state.engine = engine

    def tokens(self, n_tokens: int, seconds: float, first: bool) -> None:
        """Count new tokens of a request."""
        self.n_generated += n_tokens
        self._generated.inc(n_tokens)
        (self._first if first else self._between).observe(seconds)

    def finished(self, reason: str, seconds: float) -> None:
        """Count a request that ended."""
        self._requests.labels(reason).inc()
        if reason in ("stop", "length"):
            self._whole.observe(seconds)

    def response(self, route: str, status: int) -> None:
        """Count an HTTP response; `route` is the endpoint's pattern, never a stranger's path."""
        self._responses.labels(route, str(status)).inc()

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"sidewinder_{name}", text, buckets=buckets, registry=self.registry)


class StateCollector(Collector):
    """What is read when somebody looks: queue, slots, ranks.

    Args:
        llm: sizes, ranks and counters.
        name: the served model's.
    """

    def __init__(self, llm: LLM, name: str) -> None:
        self._llm = llm
        self._name = name
        self._ranks = llm.runner_report
        self.engine: AsyncEngine | None = None

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        n_open = 0 if self.engine is None else self.engine.n_open
        running = self._llm.engine.n_running
        gauges = {
            "requests_running": ("Requests that hold a state slot", running),
            "requests_waiting": ("Requests that wait for a slot", max(0, n_open - running)),
            "state_slots_used": ("State slots in use", running),
            "state_slots": ("State slots of the pool", self._ranks.pool.n_slots),
            "kv_pages": ("Pages of the KV cache (hybrids)", self._ranks.pool.n_pages),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"sidewinder_{name}", text, value=value)
        yield from self._counters()
        yield from self._cache()
        yield self._memory()
        yield InfoMetricFamily(
            "sidewinder_engine",
            "What runs, and the path that all-reduces take",
            value={
                "version": __version__,
                "model": self._name,
                "tp": str(self._llm.config.tp),
                "device": self._ranks.device,
                "dtype": self._ranks.dtype,
                "all_reduce": self._ranks.collectives,
            },
        )

    def _counters(self) -> Iterator[Metric]:
        counters = self._llm.counters
        yield _counter("prompt_tokens", "Prompt tokens run", counters.prompt_tokens)
        yield _counter("draft_tokens", "Tokens guessed ahead", counters.draft_tokens)
        yield _counter("accepted_tokens", "Those that were right", counters.accepted_tokens)
        yield _counter("steps", "Steps run", counters.steps)
        yield _counter("step_seconds", "Time spent in steps", counters.step_s)

    def _cache(self) -> Iterator[Metric]:
        stats = self._llm.engine.cache_stats()
        yield _counter("prefix_queries", "Requests that looked for a prefix", stats.queries)
        yield _counter("prefix_query_tokens", "Their prompt tokens", stats.query_tokens)
        yield _counter("cached_tokens", "Prompt tokens resumed, not run", stats.cached_tokens)
        hits = Metric("sidewinder_prefix_hits", "Prefixes resumed, by tier", "counter")
        held = GaugeMetricFamily("sidewinder_snapshots", "States kept", labels=["tier"])
        used = GaugeMetricFamily(
            "sidewinder_snapshot_bytes",
            "Bytes of kept states (per rank in memory)",
            labels=["tier"],
        )
        most = GaugeMetricFamily("sidewinder_snapshot_limit_bytes", "Their limit", labels=["tier"])
        for tier in ("device", "host", "disk"):
            count = getattr(stats, f"hits_{tier}")
            hits.add_sample("sidewinder_prefix_hits_total", {"tier": tier}, count)
            held.add_metric([tier], getattr(stats, f"snapshots_{tier}"))
            used.add_metric([tier], getattr(stats, f"{tier}_bytes"))
            most.add_metric([tier], getattr(stats, f"{tier}_bytes_limit"))
        yield from (hits, held, used, most)
        yield _counter("snapshots_saved", "States kept since the start", stats.saved)
        yield _counter("snapshots_evicted", "States dropped for others", stats.evicted)
        yield _counter("snapshot_disk_writes", "States written to disk", stats.disk_writes)
        yield _counter("snapshot_disk_errors", "Disk operations that failed", stats.disk_errors)
        yield GaugeMetricFamily(
            "sidewinder_kv_pages_used", "KV pages in use (hybrids)", value=stats.kv_pages_used
        )

    def _memory(self) -> Metric:
        ranks, pool = self._ranks, self._ranks.pool
        metric = GaugeMetricFamily(
            "sidewinder_rank_memory_bytes",
            "Memory that a rank holds for weights, state and KV pages",
            labels=["rank", "kind"],
        )
        for rank, weights in enumerate(ranks.weight_bytes):
            metric.add_metric([str(rank), "weights"], weights)
            metric.add_metric([str(rank), "state"], ranks.slot_bytes[rank] * pool.all_slots)
            metric.add_metric([str(rank), "kv"], ranks.page_bytes[rank] * pool.n_pages)
        return metric


def _counter(name: str, text: str, value: float) -> Metric:
    metric = Metric(f"sidewinder_{name}", text, "counter")
    metric.add_sample(f"sidewinder_{name}_total", {}, value)
    return metric


class Throughput:
    """Writes one line about what happened since the line before.

    Args:
        llm, engine, metrics: where the figures are.
    """

    def __init__(self, llm: LLM, engine: AsyncEngine, metrics: Metrics) -> None:
        self._llm = llm
        self._engine = engine
        self._metrics = metrics
        self._before = self._totals()

    def line(self) -> str | None:
        """The line, or None if nothing happened."""
        before, self._before = self._before, self._totals()
        seconds = max(self._before[0] - before[0], 1e-9)
        prompt, generated, cached = (self._before[i] - before[i] for i in (1, 2, 3))
        n_open = self._engine.n_open
        if not (prompt or generated or cached or n_open):
            return None
        running, n_slots = self._llm.engine.n_running, self._llm.runner_report.pool.n_slots
        return (
            f"prompt {prompt / seconds:.1f} tokens/s, generation {generated / seconds:.1f} "
            f"tokens/s, running {running}, waiting {max(0, n_open - running)}, "
            f"state slots {running}/{n_slots} ({running / n_slots:.0%}), "
            f"from the cache {cached / max(1.0, prompt + cached):.0%} of the prompts"
        )

    def _totals(self) -> tuple[float, float, float, float]:
        counters = self._llm.counters
        generated = self._metrics.n_generated
        return time.monotonic(), counters.prompt_tokens, generated, counters.cached_tokens
