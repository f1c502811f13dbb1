"""Many clients at once, each with a connection of its own, each with one call under way at a time.

The clients are coroutines of one process that send bytes made beforehand and do not read the
answers, so that the cores are left to the server. Phases of the calls that are compared alternate.
Every phase opens new connections: worker processes are dealt connections at random, and one lucky
or unlucky deal must not decide the result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc.aio

CLIENTS = 32
ROUNDS = 10
WARM_UP_SECONDS = 2.0
CONNECT_SECONDS = 30.0


@dataclass
class Load:
    """What one kind of call got: latencies of all calls, and the time of all its phases."""

    latencies_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    client_cpu_seconds: float = 0.0


def under_load(address: str, requests: Mapping[str, bytes], seconds: float) -> dict[str, Load]:
    """By method path, the load of about `seconds` of calls with the request given for it."""
    return asyncio.run(_rounds(address, requests, seconds / ROUNDS))


async def _rounds(
    address: str, requests: Mapping[str, bytes], phase_seconds: float
) -> dict[str, Load]:
    for path, request in requests.items():
        await _phase(address, path, request, WARM_UP_SECONDS, Load())
    loads = {path: Load() for path in requests}
    for _ in range(ROUNDS):
        for path, request in requests.items():
            await _phase(address, path, request, phase_seconds, loads[path])
    return loads


async def _phase(address: str, path: str, request: bytes, seconds: float, load: Load) -> None:
    # Without this option gRPC would share one connection among the channels.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CLIENTS)]
    try:
        connections = asyncio.gather(*(channel.channel_ready() for channel in channels))
        await asyncio.wait_for(connections, CONNECT_SECONDS)
        started, cpu_started = time.perf_counter(), time.process_time()
        end = started + seconds
        clients = (_client(channel, path, request, end, load) for channel in channels)
        await asyncio.gather(*clients)
        load.seconds += time.perf_counter() - started
        load.client_cpu_seconds += time.process_time() - cpu_started
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _client(
    channel: grpc.aio.Channel, path: str, request: bytes, end: float, load: Load
) -> None:
    call = channel.unary_unary(path)  # without serializers: bytes in, bytes out
    while (started := time.perf_counter()) < end:
        await call(request)
        load.latencies_seconds.append(time.perf_counter() - started)
