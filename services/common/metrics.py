"""Prometheus metrics that every server has: calls and latencies by method and status."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from services.common.addresses import AddressError, is_port

# From a cached in-memory answer to a stress test.
LATENCY_BUCKETS_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
)  # fmt: skip


class RpcMetrics:
    """`elite_<service>_rpc_requests_total` and `elite_<service>_rpc_duration_seconds`."""

    def __init__(self, service: str, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            f"elite_{service}_rpc_requests",
            "Finished calls by method and gRPC status.",
            ["method", "code"],
            registry=registry,
        )
        self.duration_seconds = Histogram(
            f"elite_{service}_rpc_duration_seconds",
            "Seconds from the arrival of a call to its end.",
            ["method", "code"],
            buckets=LATENCY_BUCKETS_SECONDS,
            registry=registry,
        )

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Counts one finished call."""
        self.requests.labels(method, code).inc()
        self.duration_seconds.labels(method, code).observe(seconds)


def serve_metrics(address: str, registry: CollectorRegistry = REGISTRY) -> None:
    """Serves `registry` on `host:port` from a daemon thread; an empty address does nothing.

    Raises `AddressError` when the port is taken, or is no port.
    """
    if not address:
        return
    host, _, port = address.rpartition(":")
    if not is_port(port):
        problem = f"cannot serve metrics on {address}: give host:port, the port a number"
        raise AddressError(problem)
    try:
        start_http_server(int(port), addr=host.strip("[]") or "127.0.0.1", registry=registry)
    except OSError as error:
        reason = error.strerror or error
        raise AddressError(f"cannot serve metrics on {address}: {reason}") from error


def serve_worker_metrics(address: str, service: str, directory: str) -> Counter:
    """Serves the sums over all worker processes, dead ones included, as `serve_metrics` does.

    Workers keep their metrics in `directory`, their PROMETHEUS_MULTIPROC_DIR. Returns the counter
    of restarted workers, `elite_<service>_worker_restarts_total`. Raises `AddressError`.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    serve_metrics(address, registry)
    return Counter(
        f"elite_{service}_worker_restarts",
        "Worker processes started again after they died.",
        registry=registry,
    )
