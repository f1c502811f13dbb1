"""Where metrics are served."""

from __future__ import annotations

import socket

import pytest
from prometheus_client import CollectorRegistry

from services.common.addresses import AddressError
from services.common.metrics import serve_metrics


@pytest.mark.parametrize(
    "address", ["localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999"]
)
def test_an_address_without_a_port_is_named(address: str) -> None:
    with pytest.raises(AddressError, match=f"metrics on {address}: give host:port"):
        serve_metrics(address, CollectorRegistry())


def test_an_address_of_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        address = f"[::1]:{taken.getsockname()[1]}"
        # As far as the port: the brackets are not part of the name.
        with pytest.raises(AddressError, match="in use"):
            serve_metrics(address, CollectorRegistry())
