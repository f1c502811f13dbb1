"""`python -m services.common.probe ADDRESS`: exit status 0 while a server says that it serves.

For health checks of containers; Kubernetes asks by itself. `ELITE_CLIENT_*` says how to connect.
"""

from __future__ import annotations

import sys

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


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1]) else 1)
