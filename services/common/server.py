"""Server bootstrap: every gRPC server of the house starts and stops here.

Health per service (and it is truthful: a service that lost what it needs says NOT_SERVING),
reflection, message-size and concurrency limits, interceptors, metrics, graceful shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.access import TokenFile, TokenFileError
from services.common.addresses import AddressError, check_port, is_unix_socket, reserve_port
from services.common.client_limits import ClientLimits, OpenCalls
from services.common.health import HealthServicer
from services.common.interceptors import server_interceptors
from services.common.interceptors.access import AccessInterceptor
from services.common.metrics import RpcMetrics, serve_metrics
from services.common.processes import is_worker, report_ready
from services.common.settings import ServerSettings
from services.common.tracing import configure_tracing, stop_tracing
from services.common.transport import TransportError, is_local, server_credentials

logger = logging.getLogger("elite.server")

HEALTH_INTERVAL_SECONDS = 1.0

LEAST_PING_INTERVAL = "grpc.http2.min_ping_interval_without_data_ms"
# Clients may ask every ten seconds, late or early by one, whether we are there yet, with calls open
# and without: gRPC's own servers take pings every five minutes, and close the connection of who
# sends more. We ask too, so that connections of those who vanished end, with their watches.
KEEPALIVE_OPTIONS = (
    (LEAST_PING_INTERVAL, 9_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)


async def _always_ready() -> bool:
    return True


async def _nothing() -> None:
    return None


@dataclass(frozen=True)
class ServiceDefinition:
    """One gRPC service: its full name, how to add it to a server, and its life.

    drain: a stop begins; ends calls that would go on for as long as they may. stop: it has ended.
    """

    full_name: str
    metrics_name: str
    register: Callable[[grpc.aio.Server], None]
    is_ready: Callable[[], Awaitable[bool]] = _always_ready
    start: Callable[[], Awaitable[None]] = _nothing
    drain: Callable[[], Awaitable[None]] = _nothing
    stop: Callable[[], Awaitable[None]] = _nothing


@dataclass
class RunningServer:
    """A started server. `port` is 0 for a Unix socket."""

    server: grpc.aio.Server
    service: ServiceDefinition
    health: HealthServicer
    port: int
    grace_seconds: float
    health_task: asyncio.Task[None] = field(repr=False)

    async def stop(self) -> None:
        """Refuses new calls, lets running ones end within the grace period, then stops."""
        self.health_task.cancel()
        await self.health.stop()
        await self.service.drain()
        await self.server.stop(self.grace_seconds)
        await self.service.stop()


async def start_server(
    service: ServiceDefinition, settings: ServerSettings, metrics: RpcMetrics
) -> RunningServer:
    """Starts `service` on `settings.address`; returns once it answers calls.

    A worker (see `services.common.processes`) shares the port with its siblings.
    Raises `AddressError` naming the address when it cannot be bound, and `TokenFileError` or
    `TransportError` for a setting that cannot work.
    """
    server = grpc.aio.server(
        interceptors=server_interceptors(metrics, _access(settings)),
        # gRPC's own refusals are in no log and no metric, and hit probes: ours come before.
        maximum_concurrent_rpcs=2 * settings.max_concurrent_requests + _most_watches(settings),
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", int(is_worker())),
            *KEEPALIVE_OPTIONS,
        ],
    )
    service.register(server)
    health_servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.reflection:
        names = (service.full_name, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    port = _bind(server, settings)
    await service.start()
    await _report_health(service, health_servicer)
    await server.start()
    task = asyncio.create_task(_keep_health_truthful(service, health_servicer))
    grace_seconds = settings.shutdown_grace_seconds
    return RunningServer(server, service, health_servicer, port, grace_seconds, task)


def _access(settings: ServerSettings) -> AccessInterceptor:
    limits = ClientLimits(
        settings.max_client_requests_per_second, settings.max_client_concurrent_requests
    )
    tokens = TokenFile(settings.tokens_file) if settings.tokens_file else None
    most = settings.max_concurrent_requests
    watches = OpenCalls(_most_watches(settings), "watches of health or streams of reflection")
    return AccessInterceptor(tokens, limits, OpenCalls(most), watches)


def _most_watches(settings: ServerSettings) -> int:
    """They are open to all, and one connection could otherwise take every place there is."""
    return max(1, settings.max_concurrent_requests // 4)


def _bind(server: grpc.aio.Server, settings: ServerSettings) -> int:
    address = settings.address
    if not is_unix_socket(address):
        check_port(address)
    credentials = server_credentials(
        settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    )
    if credentials is None and settings.tokens_file and not is_local(address):
        logger.warning("tokens come unencrypted: set tls_certificate", extra={"address": address})
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        if not is_unix_socket(address):
            reserve_port(address).close()  # says what is wrong with it, where gRPC does not
        problem = f"cannot listen on {address}: is another process using it?"
        raise AddressError(problem) from error
    return 0 if is_unix_socket(address) else port


async def _report_health(service: ServiceDefinition, health_servicer: HealthServicer) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    try:
        status = serving if await service.is_ready() else not_serving
    except Exception:  # whatever it is, a service that cannot say that it is ready is not
        logger.exception("the readiness check itself failed")
        status = not_serving
    await health_servicer.set(service.full_name, status)
    await health_servicer.set("", status)


async def _keep_health_truthful(
    service: ServiceDefinition, health_servicer: HealthServicer
) -> None:
    while True:
        await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
        await _report_health(service, health_servicer)


def run_service(name: str, make: Callable[[], ServiceDefinition], settings: ServerSettings) -> int:
    """A service as a process: until SIGTERM or SIGINT, then drains. Returns the exit status.

    2, with a line on stderr, when a setting keeps it from starting. `make` is called in the event
    loop.
    """

    async def run() -> None:
        """Makes the service inside the event loop."""
        await _serve(make(), settings)

    configure_tracing(name)
    try:
        asyncio.run(run())
    except (AddressError, TokenFileError, TransportError) as error:
        print(f"elite {name}: {error}", file=sys.stderr)
        return 2
    finally:
        stop_tracing()
    return 0


async def _serve(service: ServiceDefinition, settings: ServerSettings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopping.set)
    serve_metrics(settings.metrics_address)
    running = await start_server(service, settings, RpcMetrics(service.metrics_name))
    logger.info(
        "serving", extra={"service_name": service.full_name, "address": settings.address,
                          "port": running.port, "metrics_address": settings.metrics_address}
    )  # fmt: skip
    report_ready()
    await stopping.wait()
    logger.info("draining", extra={"grace_seconds": settings.shutdown_grace_seconds})
    await running.stop()
    logger.info("stopped")
