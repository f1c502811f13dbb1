"""What schemas do not say about the Kustomize overlays: names, ports, settings, policies agree."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping

import pytest
from pydantic_settings import BaseSettings

from deploy.kubernetes.manifests import (
    FOLDER,
    NAME_LABEL,
    NAMESPACE_LABEL,
    OVERLAYS,
    Object,
    containers,
    containers_named,
    environment,
    labels_of,
    name_of,
    namespace_of,
    of_kind,
    pod_of,
    quantity,
    rendered,
    selects,
    workloads,
)
from services.common.processes import STOP_MARGIN_SECONDS
from services.common.transport import ClientTransport
from services.planner.servicer import SERVICE_NAME as PLANNER
from services.planner.settings import PlannerSettings
from services.profiler.servicer import FULL_NAME as PROFILER
from services.profiler.settings import ProfilerSettings
from services.trainer.api.collector import FleetCollector
from services.trainer.api.servicer import SERVICE_NAME as TRAINER
from services.trainer.api.settings import TrainerApiSettings
from services.trainer.jobs.device_classes import class_of_name
from services.trainer.settings import TrainerSettings
from services.trainer.worker.settings import TrainerWorkerSettings
from tests.support.needs import skip_without

pytestmark = skip_without(
    shutil.which("kubectl") is None, "needs kubectl, which renders the overlays"
)
overlays = pytest.mark.parametrize("overlay", OVERLAYS)

README = (FOLDER / "README.md").read_text()
# Secrets that README.md tells to make, with their keys.
REDIS_USERS = {"users.acl", "api", "worker", "metrics", "exporter.json"}
REQUIRED_SECRETS: Mapping[str, Mapping[str, set[str]]] = {
    "cpu-dev": {},
    "gpu": {"redis-users": REDIS_USERS},
    "production": {
        "redis-users": REDIS_USERS,
        "tls": {"tls.crt", "tls.key", "ca.crt"},
        "tokens": {"tokens.yaml"},
        "worker-token": {"token"},
    },
}
SETTINGS: Mapping[str, tuple[type[BaseSettings], ...]] = {
    "profiler": (ProfilerSettings,),
    "planner": (PlannerSettings,),
    "trainer-api": (TrainerApiSettings, TrainerSettings),
    "worker": (TrainerWorkerSettings, TrainerSettings),
}
SERVICE_NAMES = {"profiler": PROFILER, "planner": PLANNER, "trainer-api": TRAINER}
WORKER = "ELITE_TRAINER_WORKER_"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@overlays
def test_the_namespace_enforces_the_restricted_profile(overlay: str) -> None:
    namespace = namespace_of(overlay)
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    for one in rendered(overlay):
        if one["kind"] != "Namespace":
            assert one["metadata"].get("namespace") == namespace[NAMESPACE_LABEL], one


@overlays
def test_pods_follow_the_restricted_profile(overlay: str) -> None:
    for workload in workloads(overlay):
        pod = pod_of(workload)
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["runAsGroup"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        kinds = {kind for volume in pod["volumes"] for kind in volume.keys() - {"name"}}
        assert kinds <= {"secret", "emptyDir", "persistentVolumeClaim"}


@overlays
def test_containers_follow_the_restricted_profile(overlay: str) -> None:
    for _, container in containers(overlay):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container["ports"])


@overlays
def test_every_service_has_an_account_that_may_nothing(overlay: str) -> None:
    accounts = of_kind(overlay, "ServiceAccount")
    used = {pod_of(workload)["serviceAccountName"] for workload in workloads(overlay)}
    assert used == {name_of(one) for one in accounts}
    assert used == {labels_of(workload)[NAME_LABEL] for workload in workloads(overlay)}
    assert all(one["automountServiceAccountToken"] is False for one in accounts)
    assert not of_kind(overlay, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


@overlays
def test_selectors_match_pods(overlay: str) -> None:
    for workload in workloads(overlay):
        selector = workload["spec"]["selector"]
        chosen = [one for one in workloads(overlay) if selects(selector, labels_of(one))]
        assert chosen == [workload], "others' pods are not its own"
        for spread in pod_of(workload).get("topologySpreadConstraints", ()):
            assert selects(spread["labelSelector"], labels_of(workload))
    for one in of_kind(overlay, "PodDisruptionBudget"):
        assert matching(overlay, one["spec"]["selector"])
        assert one["spec"]["maxUnavailable"] >= 1, "no node could be emptied"


def matching(overlay: str, selector: Object) -> list[Object]:
    """The workloads whose pods are selected."""
    return [one for one in workloads(overlay) if selects(selector, labels_of(one))]


@overlays
def test_services_and_monitors_lead_to_named_ports(overlay: str) -> None:
    asked = [({"matchLabels": one["spec"]["selector"]}, port["targetPort"])
             for one in of_kind(overlay, "Service") for port in one["spec"]["ports"]]  # fmt: skip
    asked += [(one["spec"]["selector"], endpoint["port"])
              for one in of_kind(overlay, "PodMonitor")
              for endpoint in one["spec"]["podMetricsEndpoints"]]  # fmt: skip
    for selector, port_name in asked:
        found = matching(overlay, selector)
        assert found, selector
        for workload in found:
            named = [port["name"] for container in pod_of(workload)["containers"]
                     for port in container["ports"]]  # fmt: skip
            assert named.count(port_name) == 1
    governing = {one["spec"]["serviceName"] for one in of_kind(overlay, "StatefulSet")}
    assert governing <= {name_of(one) for one in of_kind(overlay, "Service")}


@overlays
def test_ports_are_those_the_images_listen_on(overlay: str) -> None:
    text = (FOLDER.parent / "docker" / "Dockerfile").read_text()
    stages = re.split(r"^FROM runtime AS ", text, flags=re.MULTILINE)[1:]
    listening = {stage.split()[0]: re.findall(r"^EXPOSE (.+)$", stage, re.MULTILINE)[0].split()
                 for stage in stages}  # fmt: skip
    for _, container in containers(overlay):
        if container["image"].startswith("elite/"):
            image = container["image"].removeprefix("elite/").partition(":")[0]
            ports = [str(port["containerPort"]) for port in container["ports"]]
            assert ports == listening[image]


@overlays
def test_resources_are_limited(overlay: str) -> None:
    for workload, container in containers(overlay):
        resources = container["resources"]
        for name in ("cpu", "memory", "ephemeral-storage"):
            assert 0 < quantity(resources["requests"][name]) <= quantity(resources["limits"][name])
        scratch = [quantity(volume["emptyDir"]["sizeLimit"])
                   for volume in pod_of(workload)["volumes"] if "emptyDir" in volume]  # fmt: skip
        assert sum(scratch) <= quantity(resources["limits"]["ephemeral-storage"])
    for claim in of_kind(overlay, "PersistentVolumeClaim"):
        assert quantity(claim["spec"]["resources"]["requests"]["storage"]) > 0


@pytest.mark.parametrize("text", ["", "8 Gi", "1GiB", "0,5", "-1", "all"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


@overlays
def test_a_profile_is_of_what_a_worker_may_take(overlay: str) -> None:
    ((_, profiler),) = containers_named(overlay, "profiler")
    scratch = environment(overlay, profiler)["ELITE_PROFILER_SCRATCH_DIRECTORY"]
    assert {"name": "runs", "mountPath": scratch} in profiler["volumeMounts"]
    workers = containers_named(overlay, "worker")
    assert workers
    for _, worker in workers:
        for name in ("cpu", "memory"):
            assert worker["resources"]["limits"][name] == profiler["resources"]["limits"][name]
        runs = environment(overlay, worker)["ELITE_TRAINER_RUNS_DIRECTORY"]
        assert {"name": "runs", "mountPath": runs} in worker["volumeMounts"]


@overlays
def test_probes_ask_declared_ports(overlay: str) -> None:
    for _, container in containers(overlay):
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
        ports = [value for port in container["ports"] for value in port.values()]
        for probe in (container[kind] for kind in PROBES if kind in container):
            (action,) = {"grpc", "httpGet", "tcpSocket", "exec"} & probe.keys()
            command = probe[action].get("command", ())
            if "services.common.probe" in command:
                assert int(command[-1].removeprefix("127.0.0.1:")) in ports
            elif action != "exec":
                assert probe[action]["port"] in ports
            if action == "grpc":
                assert probe[action]["service"] == SERVICE_NAMES[container["name"]]


@overlays
def test_the_kubelet_is_not_asked_to_speak_tls(overlay: str) -> None:
    for _, container in containers(overlay):
        variables = environment(overlay, container)
        if any(name.endswith("_TLS_CERTIFICATE") for name in variables):
            assert not any("grpc" in container.get(kind, {}) for kind in PROBES)
            assert variables["ELITE_CLIENT_TLS_NAME"] == container["name"]
        elif container["name"] in SERVICE_NAMES:
            assert overlay != "production"


def references(workload: Object) -> Iterator[tuple[str, str, set[str]]]:
    """(kind, name, keys) of what its pods need."""
    for volume in pod_of(workload)["volumes"]:
        if secret := volume.get("secret"):
            yield "Secret", secret["secretName"], {item["key"] for item in secret["items"]}
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"], set()
    for container in pod_of(workload)["containers"]:
        for source in container.get("envFrom", ()):
            yield "ConfigMap", source["configMapRef"]["name"], set()
        assert not any("secretKeyRef" in str(one) for one in container.get("env", ()))


@overlays
def test_what_is_referred_to_exists_or_is_asked_for(overlay: str) -> None:
    required = REQUIRED_SECRETS[overlay]
    there = {("Secret", name): keys for name, keys in required.items()}
    there |= {(one["kind"], name_of(one)): {*one.get("data", ())} for one in rendered(overlay)}
    used = [found for workload in workloads(overlay) for found in references(workload)]
    for kind, name, keys in used:
        assert keys <= there[kind, name]
    assert required.keys() <= {name for _, name, _ in used}
    for name, keys in required.items():
        assert all(f"`{word}`" in README for word in (name, *keys))
    assert bool(of_kind(overlay, "Secret")) == (overlay == "cpu-dev"), "a password in the open"


@overlays
def test_files_are_looked_for_where_volumes_are_mounted(overlay: str) -> None:
    for workload, container in containers(overlay):
        volumes = {volume["name"] for volume in pod_of(workload)["volumes"]}
        volumes |= {name_of(one) for one in workload["spec"].get("volumeClaimTemplates", ())}
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert set(mounts.values()) == volumes
        for value in environment(overlay, container).values():
            assert value[:1] != "/" or any(f"{value}/".startswith(f"{one}/") for one in mounts)


@overlays
def test_variables_are_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = {f"ELITE_CLIENT_{name.upper()}" for name in ClientTransport.__slots__}
    for _, container in containers(overlay):
        kinds = SETTINGS.get(container["name"], ())
        known = {f"{kind.model_config['env_prefix']}{field.upper()}"
                 for kind in kinds for field in kind.model_fields}  # fmt: skip
        variables = environment(overlay, container)
        ours = {name for name in variables if name.startswith("ELITE_")}
        assert ours - known - clients == set(), container["name"]
        with monkeypatch.context() as patch:
            # The one file that is read at once.
            for name in ours - {"ELITE_TRAINER_REDIS_PASSWORD_FILE"}:
                patch.setenv(name, variables[name])
            assert all(kind() for kind in kinds)
            assert ClientTransport.from_environment()


@overlays
def test_pods_have_time_to_stop(overlay: str) -> None:
    for workload, container in containers(overlay):
        grace_seconds = pod_of(workload).get("terminationGracePeriodSeconds", 30)
        if container["name"] == "worker":
            drain_seconds = TrainerWorkerSettings().drain_grace_seconds
            assert f"{WORKER}DRAIN_GRACE_SECONDS" not in environment(overlay, container)
            # After it the engine is killed, and the record is still to be written.
            assert grace_seconds >= drain_seconds + 30
            assert "lifecycle" not in container
        elif container["name"] in SERVICE_NAMES:
            pause_seconds = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            drain_seconds = PlannerSettings().shutdown_grace_seconds + STOP_MARGIN_SECONDS
            assert grace_seconds > pause_seconds + drain_seconds


@overlays
def test_scalers_have_something_to_scale(overlay: str) -> None:
    found = {(one["kind"], name_of(one)): one for one in workloads(overlay)}
    exported = {family.name for family in FleetCollector(TrainerSettings()).describe()}
    scaled = set()
    for one in of_kind(overlay, "HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        workload = found[target["kind"], target["name"]]
        scaled.add(target["name"])
        assert "replicas" not in workload["spec"], "applying it again would undo the scaling"
        for trigger in one["spec"].get("triggers", ()):
            query = trigger["metadata"]["query"]
            assert set(re.findall(r"elite_\w+", query)) <= exported
            assert "elite_trainer_running_runs" in query
            classes = set(re.findall(r'device_class="([^"]+)"', query))
            assert classes == {labels_of(workload)["device-class"]}
    workers = {name_of(workload) for workload, _ in containers_named(overlay, "worker")}
    assert "planner" in scaled
    assert workers <= scaled or overlay != "production"


@overlays
def test_a_worker_is_where_its_devices_are(overlay: str) -> None:
    for workload, container in containers_named(overlay, "worker"):
        device_class = environment(overlay, container)[f"{WORKER}DEVICE_CLASSES"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        assert (gpus is None) == (device_class == "cpu") == (overlay == "cpu-dev")
        if gpus:
            pod = pod_of(workload)
            assert class_of_name(pod["nodeSelector"]["nvidia.com/gpu.product"]) == device_class
            assert labels_of(workload)["device-class"] == device_class
            assert any(one["key"] == "nvidia.com/gpu" for one in pod["tolerations"])
            assert container["image"].endswith("-cuda")


def test_users_of_the_dev_overlay_are_those_of_the_template() -> None:
    text = (FOLDER.parent / "redis" / "users.acl.template").read_text()
    for user in ("operator", "api", "worker", "metrics"):
        text = text.replace(f">{user.upper()}_PASSWORD", f">not-for-production-{user}")
    assert (FOLDER / "overlays" / "cpu-dev" / "users.acl").read_text() == text
