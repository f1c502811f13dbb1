"""The one list of server interceptors, outermost first."""

from __future__ import annotations

import grpc.aio

from services.common.interceptors.access import AccessInterceptor
from services.common.interceptors.error_status import ErrorStatusInterceptor
from services.common.interceptors.request_log import RequestLogInterceptor
from services.common.interceptors.request_validation import ValidationInterceptor
from services.common.interceptors.rpc_metrics import MetricsInterceptor
from services.common.interceptors.tracing import TracingInterceptor
from services.common.metrics import RpcMetrics


def server_interceptors(
    metrics: RpcMetrics, access: AccessInterceptor
) -> list[grpc.aio.ServerInterceptor]:
    """Log, trace, count what the caller sees; translate errors; who is it; validate; servicer."""
    return [
        RequestLogInterceptor(),
        TracingInterceptor(),
        MetricsInterceptor(metrics),
        ErrorStatusInterceptor(),
        access,
        ValidationInterceptor(),
    ]
