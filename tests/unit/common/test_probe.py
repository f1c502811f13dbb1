"""The health check of containers."""

from __future__ import annotations

import socket

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from services.common.probe import main


def test_a_process_that_serves_metrics_is_asked_by_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server, thread = start_http_server(0, addr="127.0.0.1", registry=CollectorRegistry())
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    assert main(url) == 0
    server.shutdown()
    server.server_close()
    thread.join()
    assert main(url) == 1


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert main(f"127.0.0.1:{taken.getsockname()[1]}") == 1
