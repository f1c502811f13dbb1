"""The overlays as kubectl renders them, and who may talk to whom under their network policies."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
OVERLAYS = ("cpu-dev", "gpu", "production")
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
NAME_LABEL = "app.kubernetes.io/name"

Object = dict[str, Any]
Labels = Mapping[str, str]

_SUFFIXES = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6),
    "G": Decimal(10**9), "T": Decimal(10**12), "Ki": Decimal(2**10), "Mi": Decimal(2**20),
    "Gi": Decimal(2**30), "Ti": Decimal(2**40),
}  # fmt: skip


@cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """All objects of an overlay. Raises `subprocess.CalledProcessError`."""
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return tuple(yaml.safe_load_all(text))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    """The objects of these kinds."""
    return [one for one in rendered(overlay) if one["kind"] in kinds]


def name_of(one: Object) -> str:
    """The object's own name."""
    name: str = one["metadata"]["name"]
    return name


def workloads(overlay: str) -> list[Object]:
    """What makes pods."""
    return of_kind(overlay, "Deployment", "StatefulSet", "DaemonSet")


def pod_of(workload: Object) -> Object:
    """The specification of its pods."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def labels_of(workload: Object) -> Labels:
    """Of its pods."""
    labels: Labels = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers(overlay: str) -> Iterator[tuple[Object, Object]]:
    """(workload, container), all there are."""
    for workload in workloads(overlay):
        pod = pod_of(workload)
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield workload, container


def containers_named(overlay: str, name: str) -> list[tuple[Object, Object]]:
    """(workload, container) of the containers of that name."""
    return [found for found in containers(overlay) if found[1]["name"] == name]


def environment(overlay: str, container: Object) -> dict[str, str]:
    """Variables of a container, those of its ConfigMaps too; "field" for what is known later."""
    maps = {name_of(one): one["data"] for one in of_kind(overlay, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= maps[source["configMapRef"]["name"]]
    return found | {one["name"]: one.get("value", "field") for one in container.get("env", ())}


def quantity(text: object) -> Decimal:
    """Of Kubernetes, in its unit: cores or bytes. Raises `ValueError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mkMGT]?|[KMGT]i)", str(text))
    if not found:
        raise ValueError(f"{text!r} is no quantity")
    return Decimal(found[1]) * _SUFFIXES[found[2]]


def selects(selector: Object, labels: Labels) -> bool:
    """Whether a label selector matches; an empty one matches everything.

    Raises `ValueError` for an operator other than In.
    """
    expressions = selector.get("matchExpressions", ())
    if any(one["operator"] != "In" for one in expressions):
        raise ValueError(f"only In is understood: {selector}")
    wanted = {key: [value] for key, value in selector.get("matchLabels", {}).items()}
    listed = [*wanted.items(), *((one["key"], one["values"]) for one in expressions)]
    return all(labels.get(key) in values for key, values in listed)


@dataclass(frozen=True)
class Pod:
    """One end of a connection. namespace: the labels of its namespace. ports: numbers by name."""

    labels: Labels
    namespace: Labels
    ports: Mapping[str, int] = field(default_factory=dict)


class Policies:
    """The network policies of one namespace."""

    def __init__(self, policies: Sequence[Object], namespace: Labels) -> None:
        self._policies = [policy["spec"] for policy in policies]
        self._namespace = namespace

    def connects(self, source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
        """Whether a connection may be opened: the source may leave, and the target lets it in."""
        return self._admits("Egress", source, target, target, port, protocol) and self._admits(
            "Ingress", target, source, target, port, protocol
        )

    def _admits(
        self, direction: str, subject: Pod, peer: Pod, target: Pod, port: int, protocol: str
    ) -> bool:
        if subject.namespace != self._namespace:
            return True
        governing = [
            policy
            for policy in self._policies
            if direction in policy["policyTypes"] and selects(policy["podSelector"], subject.labels)
        ]
        key, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
        rules = [rule for policy in governing for rule in policy.get(key, ())]
        return not governing or any(
            self._lets_through(rule["ports"], target, port, protocol)
            and any(self._is_peer(one, peer) for one in rule[peers])
            for rule in rules
        )

    def _is_peer(self, described: Object, pod: Pod) -> bool:
        """Without a selector of namespaces it means pods of the policy's own."""
        if "namespaceSelector" in described:
            is_namespace = selects(described["namespaceSelector"], pod.namespace)
        else:
            is_namespace = pod.namespace == self._namespace
        return is_namespace and selects(described.get("podSelector", {}), pod.labels)

    def _lets_through(self, ports: Sequence[Object], target: Pod, port: int, protocol: str) -> bool:
        return any(
            one["protocol"] == protocol and target.ports.get(one["port"], one["port"]) == port
            for one in ports
        )


def policies_of(overlay: str) -> Policies:
    """Of the overlay's namespace."""
    return Policies(of_kind(overlay, "NetworkPolicy"), namespace_of(overlay))


def namespace_of(overlay: str) -> Labels:
    """Labels of the overlay's namespace, its name among them."""
    (namespace,) = of_kind(overlay, "Namespace")
    return {**namespace["metadata"]["labels"], NAMESPACE_LABEL: name_of(namespace)}


def pods(overlay: str) -> dict[str, Pod]:
    """One pod of each service, by the service's name. Workers of all kinds are alike."""
    found = {}
    for workload, container in containers(overlay):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        labels = labels_of(workload)
        found[labels[NAME_LABEL]] = Pod(labels, namespace_of(overlay), ports)
    return found
