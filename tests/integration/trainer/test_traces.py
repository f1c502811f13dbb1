"""One trace from the caller over the API and the worker to the engine's steps."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from services.common import tracing
from services.common.transport import ClientTransport
from services.trainer.jobs.states import FAILED, SUCCEEDED
from tests.support.api_process import ApiProcess
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import TrainerStack, wait_until
from tests.support.valkey import Valkey


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span it is sent, with the name of the service that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        for resource in request.resource_spans:
            attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(attributes["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[tuple[str, Any]]:
        return [(service, span) for service, span in self.spans if name in span.name]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    kept = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    yield kept
    tracing.stop_tracing()
    server.stop(None)


def test_one_trace_from_the_caller_to_the_steps(tmp_path: Path, collector: Collector) -> None:
    valkey = Valkey().start()
    stack = TrainerStack(tmp_path, valkey)
    api = ApiProcess(stack)
    try:
        api.start()
        stack.start_worker()
        tracing.configure_tracing("test")
        request = trainer_pb2.CreateRunRequest(spec=a_spec(stack.data, "succeed", 3))
        with tracing.span("caller"):
            stub = trainer_pb2_grpc.TrainerServiceStub(ClientTransport().open(stack.address))
            run = stub.CreateRun(request, timeout=20).run
        assert stack.wait_for(run.run_id, SUCCEEDED, FAILED).state == SUCCEEDED
        tracing.stop_tracing()
        wait_until(lambda: len(collector.named("attempt")) == 1, "spans", stack.describe)
    finally:
        api.close()
        stack.close()
        valkey.close()
    ((_, caller),) = collector.named("caller")
    ((api_name, created),) = collector.named("CreateRun")
    ((worker_name, attempt),) = collector.named("attempt")
    steps = collector.named("step")
    assert (api_name, worker_name) == ("elite-trainer", "elite-trainer-worker")
    assert created.parent_span_id == caller.span_id
    assert attempt.parent_span_id == created.span_id
    assert [span.parent_span_id for _, span in steps] == [attempt.span_id] * 3
    assert {span.trace_id for _, span in (*steps, ("", created))} == {caller.trace_id}
    assert run.traceparent.split("-")[1] == caller.trace_id.hex()
