"""`python -m services.common.probe ADDRESS`: exit status 0 while a server says that it serves.

ADDRESS is that of a gRPC server, or the http:// of a process that serves nothing but metrics. For
health checks of containers; Kubernetes asks by itself. `ELITE_CLIENT_*` says how to connect.
"""

from __future__ import annotations

import sys
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.transport import open_channel

_PATIENCE_SECONDS = 4.0


def is_serving(address: str) -> bool:
    """Whether the server at `address` answers and is SERVING."""
    with open_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_PATIENCE_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def is_answering(url: str) -> bool:
    """Whether an HTTP server answers with success. A proxy set for the web is not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_PATIENCE_SECONDS):
            return True
    except OSError:
        return False


def main(address: str) -> int:
    """The exit status for `address`."""
    is_up = is_answering if address.startswith("http://") else is_serving
    return 0 if is_up(address) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
