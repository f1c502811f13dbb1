"""How the stack tells that a process is up."""

from __future__ import annotations

from collections.abc import Callable

from elite_cli.stack.valkey import ValkeyServer

PROBE_SECONDS = 1.0


def grpc_health(address: str, service: str) -> Callable[[], bool]:
    """A probe that asks the server at `address` whether `service` is SERVING."""

    def is_serving() -> bool:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        from services.common.transport import open_channel

        request = health_pb2.HealthCheckRequest(service=service)
        with open_channel(address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PROBE_SECONDS)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return is_serving


def celery_worker(valkey: ValkeyServer, hostname: str) -> Callable[[], bool]:
    """A probe that is true once the Celery worker takes tasks: it answers a ping by name."""

    def answers() -> bool:
        from celery import Celery

        with Celery(broker=valkey.url) as app:
            try:
                replies = app.control.ping(destination=[hostname], timeout=PROBE_SECONDS)
            except OSError:
                return False
        return any(hostname in reply for reply in replies or ())

    return answers
