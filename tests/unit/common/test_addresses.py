"""A reserved port belongs to its reserver and to those it shares it with."""

from __future__ import annotations

import socket

import pytest

from services.common.addresses import AddressError, bound_address, reserve_port


def sharer(address: str) -> socket.socket:
    """Listens as a worker's gRPC does."""
    host, _, port = address.rpartition(":")
    return socket.create_server((host, int(port)), reuse_port=True)


def test_sharers_listen_and_the_reserver_does_not() -> None:
    with reserve_port("127.0.0.1:0") as reserved:
        address = bound_address("127.0.0.1:0", reserved)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(reserved.getsockname(), timeout=5)
        with sharer(address), sharer(address):
            socket.create_connection(reserved.getsockname(), timeout=5).close()


@pytest.mark.parametrize("is_listened_on", [False, True])
def test_a_port_is_reserved_once(is_listened_on: bool) -> None:
    with reserve_port("127.0.0.1:0") as reserved:
        address = bound_address("127.0.0.1:0", reserved)
        worker = sharer(address) if is_listened_on else None
        with pytest.raises(AddressError, match=f"{address}: Address already in use"):
            reserve_port(address)
        if worker:
            worker.close()


def test_a_port_with_a_past_is_free() -> None:
    """The side that closes a connection first remembers it for a minute (TIME_WAIT)."""
    with reserve_port("127.0.0.1:0") as reserved:
        address = bound_address("127.0.0.1:0", reserved)
        with sharer(address) as worker, socket.create_connection(worker.getsockname()) as client:
            connection, _ = worker.accept()
            connection.close()
            assert client.recv(1) == b""
    reserve_port(address).close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536", "50051"])
def test_no_port(address: str) -> None:
    with pytest.raises(AddressError, match="give host:port"):
        reserve_port(address)


def test_a_host_that_is_not_here() -> None:
    with pytest.raises(AddressError, match=r"cannot listen on 192\.0\.2\.1:0: "):
        reserve_port("192.0.2.1:0")  # a documentation address, RFC 5737


def test_a_wildcard_leaves_no_room_below_it() -> None:
    with reserve_port("0.0.0.0:0") as reserved, pytest.raises(AddressError):
        reserve_port(f"127.0.0.1:{reserved.getsockname()[1]}")
