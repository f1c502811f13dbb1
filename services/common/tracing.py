"""Traces of what happened where, as OpenTelemetry spans; off unless an endpoint is configured.

`OTEL_EXPORTER_OTLP_ENDPOINT` switches it on and all of OpenTelemetry's own variables hold; the
libraries come with the extra `tracing`. Without them, and without the variable, a span costs a
function call. Spans go from process to process as a W3C `traceparent`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

TRACEPARENT = "traceparent"
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

logger = logging.getLogger("elite.tracing")

# None: off.
_provider: Any = None
_tracer: Any = None


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether spans are to go anywhere."""
    return any(environment.get(name) for name in _ENDPOINT_VARIABLES)


def configure_tracing(service: str, exporter: Any = None) -> None:
    """Switches tracing on for this process, when it is wanted. `exporter` goes before OTLP's."""
    global _provider, _tracer
    if exporter is None and not is_wanted():
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("no traces: install elite-training[tracing]")
        return
    _provider = TracerProvider(resource=Resource.create({"service.name": f"elite-{service}"}))
    _provider.add_span_processor(BatchSpanProcessor(exporter or _otlp_exporter()))
    _tracer = _provider.get_tracer("elite")


def _otlp_exporter() -> Any:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def stop_tracing() -> None:
    """Sends what is left and switches tracing off."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
        _provider = _tracer = None


@contextmanager
def span(
    name: str, parent: str = "", *, kind: str = "INTERNAL", **attributes: Any
) -> Iterator[None]:
    """A span around a block, under the `traceparent` given or whatever span is open here.

    An exception that leaves the block marks it as failed.
    """
    if _tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind

    with _tracer.start_as_current_span(
        name, _context_of(parent), kind=SpanKind[kind], attributes=attributes
    ):
        yield


def record_span(name: str, parent: str, end_seconds: float, seconds: float, **facts: Any) -> None:
    """A span of something that was over at `end_seconds` since the epoch, and told by others."""
    if _tracer is None:
        return
    begin = int((end_seconds - seconds) * 1e9)
    one = _tracer.start_span(name, _context_of(parent), attributes=facts, start_time=begin)
    one.end(int(end_seconds * 1e9))


def current_traceparent() -> str:
    """Of the span that is open here; empty without one."""
    if _tracer is None:
        return ""
    carrier: dict[str, str] = {}
    _propagator().inject(carrier)
    return carrier.get(TRACEPARENT, "")


def _context_of(parent: str) -> Any:
    return _propagator().extract({TRACEPARENT: parent}) if parent else None


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
