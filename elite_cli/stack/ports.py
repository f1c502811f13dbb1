"""Ports of the local stack."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from elite_cli.errors import CliError

LOOPBACK = "127.0.0.1"

# Offset from --port-base of everything that listens. Metrics stand ten above.
PORT_OFFSETS = {
    "profiler": 0,
    "planner": 1,
    "trainer": 2,
    "valkey": 3,
    "profiler metrics": 10,
    "planner metrics": 11,
    "trainer metrics": 12,
    "worker metrics": 13,
}
DEFAULT_PORT_BASE = 50051
HIGHEST_PORT_BASE = 65535 - max(PORT_OFFSETS.values())


def choose_ports(port_base: int) -> dict[str, int]:
    """A port for each listener: from `port_base` up, or free ones when it is 0.

    Raises `CliError` naming the port that is taken.
    """
    with ExitStack() as held:
        if port_base == 0:
            # All held at once, so that no two are the same.
            return {name: _bind(held, name, 0) for name in PORT_OFFSETS}
        return {
            name: _bind(held, name, port_base + offset) for name, offset in PORT_OFFSETS.items()
        }


def _bind(held: ExitStack, name: str, port: int) -> int:
    listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # Ports of connections that have just ended count as free, ports in use do not.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        raise CliError(
            f"--port-base: port {port} ({name}) cannot be used: {error.strerror}: "
            "free it, or choose other ports with --port-base (0: any free ports)"
        ) from error
    return int(listener.getsockname()[1])


def address(ports: dict[str, int], name: str) -> str:
    """host:port of a listener."""
    return f"{LOOPBACK}:{ports[name]}"
