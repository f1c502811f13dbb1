"""Spans: off by default, one trace over processes when on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import tracing


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    tracing.configure_tracing("test", kept)
    yield kept
    tracing.stop_tracing()


def finished(exporter: InMemorySpanExporter) -> dict[str, object]:
    tracing._provider.force_flush()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_without_an_endpoint_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing._ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    tracing.configure_tracing("test")
    with tracing.span("a"):
        assert tracing.current_traceparent() == ""
    tracing.record_span("b", "", 2.0, 1.0)
    tracing.stop_tracing()
    assert not tracing.is_wanted({})
    assert tracing.is_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"})


def test_a_span_is_under_the_one_another_process_opened(exporter: InMemorySpanExporter) -> None:
    with tracing.span("client", kind="CLIENT", run_id="run-1"):
        sent = tracing.current_traceparent()
    with tracing.span("server", sent, kind="SERVER"), tracing.span("inside"):
        pass
    tracing.record_span("step", sent, end_seconds=10.0, seconds=4.0, loss=2.5)
    spans = finished(exporter)
    assert {span.context.trace_id for span in spans.values()} == {  # type: ignore[attr-defined]
        int(sent.split("-")[1], 16)
    }
    client, server, inside, step = (spans[name] for name in ("client", "server", "inside", "step"))
    assert server.parent.span_id == client.context.span_id  # type: ignore[attr-defined]
    assert inside.parent.span_id == server.context.span_id  # type: ignore[attr-defined]
    assert (step.start_time, step.end_time) == (6 * 10**9, 10 * 10**9)  # type: ignore[attr-defined]
    assert client.attributes == {"run_id": "run-1"}  # type: ignore[attr-defined]


def test_an_error_is_told(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(KeyError), tracing.span("fails"):
        raise KeyError("x")
    assert not finished(exporter)["fails"].status.is_ok  # type: ignore[attr-defined]
