"""Who can reach whom under the network policies, and that all that has to can."""

from __future__ import annotations

import re
import shutil

import pytest

from deploy.kubernetes.manifests import (
    NAME_LABEL,
    NAMESPACE_LABEL,
    OVERLAYS,
    Pod,
    containers,
    environment,
    labels_of,
    name_of,
    namespace_of,
    of_kind,
    pods,
    policies_of,
)
from tests.support.needs import skip_without

pytestmark = skip_without(
    shutil.which("kubectl") is None, "needs kubectl, which renders the overlays"
)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_address_that_is_set_can_be_reached(overlay: str) -> None:
    services = {name_of(one): one["spec"] for one in of_kind(overlay, "Service")}
    policies, found, tried = policies_of(overlay), pods(overlay), set()
    for workload, container in containers(overlay):
        for value in environment(overlay, container).values():
            address = re.fullmatch(r"(?:\w+://)?([a-z-]+):(\d+)(?:/.*)?", value)
            if not address:
                continue
            (port,) = [
                one for one in services[address[1]]["ports"] if str(one["port"]) == address[2]
            ]
            target = found[services[address[1]]["selector"][NAME_LABEL]]
            number = target.ports[port["targetPort"]]
            source = found[labels_of(workload)[NAME_LABEL]]
            assert policies.connects(source, target, number), (container["name"], value)
            tried.add((container["name"], address[1]))
    expected = {("worker", "redis"), ("worker", "planner"), ("worker", "profiler")}
    assert tried >= expected | {("trainer-api", "redis")}


HERE = {NAMESPACE_LABEL: "elite"}
OTHERS = {
    "client": Pod({"elite-client": "true"}, HERE),
    "stranger": Pod({}, HERE),
    "client elsewhere": Pod({}, {"elite-client": "true", NAMESPACE_LABEL: "tools"}),
    "stranger elsewhere": Pod({"elite-client": "true"}, {NAMESPACE_LABEL: "other"}),
    "prometheus": Pod({NAME_LABEL: "prometheus"}, {NAMESPACE_LABEL: "monitoring"}),
    "beside prometheus": Pod({NAME_LABEL: "grafana"}, {NAMESPACE_LABEL: "monitoring"}),
    "dns": Pod({"k8s-app": "kube-dns"}, {NAMESPACE_LABEL: "kube-system"}),
}
GRPC = {"profiler": 50051, "planner": 50052, "trainer-api": 50053}
METRICS = {"profiler": 9101, "planner": 9102, "trainer-api": 9103, "worker": 9104}
ALLOWED = {
    *(("worker", name, GRPC[name]) for name in ("profiler", "planner")),
    *((client, *one) for client in ("client", "client elsewhere") for one in GRPC.items()),
    *(("prometheus", *one) for one in (*METRICS.items(), ("redis-exporter", 9121))),
    *((name, "redis", 6379) for name in ("worker", "trainer-api", "redis-exporter")),
}


def test_nothing_else_can_be_reached() -> None:
    policies, ours = policies_of("production"), pods("production")
    here = namespace_of("production")
    others = {name: Pod(pod.labels, here) if pod.namespace is HERE else pod
              for name, pod in OTHERS.items()}  # fmt: skip
    opened = {
        (source, target, port)
        for source, pod in (ours | others).items()
        for target, its_pod in ours.items()
        for port in its_pod.ports.values()
        if policies.connects(pod, its_pod, port)
    }
    assert opened == ALLOWED
    assert all(policies.connects(pod, others["dns"], 53, "UDP") for pod in ours.values())
    assert not any(policies.connects(pod, others["dns"], 443) for pod in ours.values())
