"""Addresses a server listens on."""

from __future__ import annotations

import socket

_HIGHEST_PORT = 65535


class AddressError(OSError):
    """An address that cannot be listened on; the message names it and says why."""


def is_unix_socket(address: str) -> bool:
    """True for gRPC's `unix:` and `unix-abstract:` addresses."""
    return address.startswith(("unix:", "unix-abstract:"))


def is_port(text: str) -> bool:
    """Whether it is the number of a TCP port; 0 stands for any free one."""
    return text.isdecimal() and int(text) <= _HIGHEST_PORT


def check_port(address: str) -> str:
    """The port of `host:port`. Raises `AddressError` when there is none."""
    _, colon, port = address.rpartition(":")
    if not colon or not is_port(port):
        raise AddressError(f"cannot listen on {address}: give host:port, the port a number")
    return port


def reserve_port(address: str) -> socket.socket:
    """A socket bound to `host:port` that never listens, so that other processes can share the port.

    Sharers of the same user bind with SO_REUSEPORT; anyone else is refused. With port 0 the kernel
    picks a free one. Raises `AddressError` when the port is taken, even by sharers, or cannot be
    had.
    """
    host, port = address.rpartition(":")[0], check_port(address)
    reserved: socket.socket | None = None
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        reserved = socket.socket(family, kind, protocol)
        # Binds beside connections of an earlier server that the kernel still remembers.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(where)
    except OSError as error:
        if reserved is not None:
            reserved.close()
        raise AddressError(f"cannot listen on {address}: {error.strerror or error}") from error
    # Only now: set before binding, SO_REUSEPORT would let us into a port that others share. And
    # with SO_REUSEADDR left on, another parent could bind, too, until the first worker listens.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def bound_address(address: str, bound: socket.socket) -> str:
    """`address` with the port that `bound` really has."""
    return f"{address.rpartition(':')[0]}:{bound.getsockname()[1]}"
