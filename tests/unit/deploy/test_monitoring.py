"""Rules, their tests, dashboards and runbooks agree with one another and with what is exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric

from deploy.monitoring.grafana import dashboards
from deploy.monitoring.grafana.panels import Panel, dashboard_json
from services.common.metrics import LATENCY_BUCKETS_SECONDS, RpcMetrics
from services.planner.metrics import PlannerMetrics
from services.profiler.metrics import ProfileCollector
from services.trainer.api.collector import FleetCollector
from services.trainer.settings import TrainerSettings
from services.trainer.worker.metrics import START_BUCKETS_SECONDS, WorkerMetrics
from tests.support.machines import measured_profile

REPOSITORY = Path(__file__).resolve().parents[3]
MONITORING = REPOSITORY / "deploy" / "monitoring"
PROMETHEUS = MONITORING / "prometheus"

# What others export: Prometheus itself, redis_exporter, node_exporter, NVIDIA's dcgm-exporter.
EXPORTED_BY_OTHERS = {
    "up",
    "redis_connected_clients",
    "redis_memory_used_bytes",
    "redis_up",
    "node_cpu_seconds_total",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_XID_ERRORS",
}
SEVERITIES = {"critical", "warning", "info"}
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_WORDS = {"and", "or", "unless", "by", "on", "ignoring", "group_left", "without", "bool", "offset"}


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules of a kind, "alert" or "record"."""
    files = [yaml.safe_load(path.read_text()) for path in (PROMETHEUS / "rules").glob("*.yml")]
    groups = [group for file in files for group in file["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


ALERTS = {rule["alert"]: rule for rule in rules("alert")}
PANELS: list[Panel] = [panel for one in dashboards.DASHBOARDS for panel in one.panels()]


def metric_names(expression: str) -> set[str]:
    """Of the series that a PromQL expression selects."""
    bare = re.sub(r"#[^\n]*", "", expression)
    bare = re.sub(r'"[^"]*"', "", bare)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|on|ignoring|without|group_left)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"[A-Za-z_:][\w:]*(?!\w*\s*\()", bare)
    return {name for name in names if name not in _WORDS}


def samples(families: Iterable[Metric]) -> set[str]:
    """Names of the samples of metric families."""
    return {f.name + suffix for f in families for suffix in _SUFFIXES.get(f.type, ())}


def exported() -> set[str]:
    """What our processes export, taken from their own metrics."""
    registry = CollectorRegistry()
    for service in ("profiler", "planner", "trainer"):
        RpcMetrics(service, registry)
    PlannerMetrics(registry)
    WorkerMetrics(registry)
    profile = measured_profile()
    for field in profile.host.scratch_disk.DESCRIPTOR.fields_by_name:
        if field.endswith(("_bytes", "_second")):
            setattr(profile.host.scratch_disk, field, 1)
    registry.register(ProfileCollector(lambda: profile))
    fleet = FleetCollector(TrainerSettings()).describe()
    # The API's counter is in the process's own registry.
    return samples(registry.collect()) | samples(fleet) | samples(REGISTRY.collect())


def expressions() -> list[tuple[str, str]]:
    """Every query there is, with where it stands."""
    of_rules = [(rule.get("alert") or rule["record"], rule["expr"]) for kind in ("alert", "record")
                for rule in rules(kind)]  # fmt: skip
    of_panels = [(panel.title, query.expression) for panel in PANELS for query in panel.queries]
    of_variables = [(variable.name, variable.metric)
                    for one in dashboards.DASHBOARDS for variable in one.variables]  # fmt: skip
    return of_rules + of_panels + of_variables


def test_names_are_taken_from_an_expression() -> None:
    expression = 'sum by (le) (rate(a_bucket{le="0.5", x=~"b|c"}[5m])) / on () d:e:f > 0.1 and g'
    assert metric_names(expression) == {"a_bucket", "d:e:f", "g"}


def test_every_metric_is_exported() -> None:
    known = exported() | EXPORTED_BY_OTHERS | {rule["record"] for rule in rules("record")}
    unknown = {(where, name) for where, text in expressions() for name in metric_names(text)
               if name not in known}  # fmt: skip
    assert not unknown


def test_every_bucket_that_is_asked_for_exists() -> None:
    bounds = {float(bound) for bound in (*LATENCY_BUCKETS_SECONDS, *START_BUCKETS_SECONDS)}
    bounds |= {-0.05, 0.05}
    asked = {bound for _, text in expressions() for bound in re.findall(r'le="([^"]+)"', text)}
    # As the client library writes them: "300.0", not "300".
    assert asked == {str(float(bound)) for bound in asked}
    assert {float(bound) for bound in asked} <= bounds


def test_dashboards_are_fresh() -> None:
    assert dashboards.stale() == [], "run python -m deploy.monitoring.grafana.dashboards"


def test_stale_and_surplus_dashboards_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboards, "FOLDER", tmp_path)
    paths = {dashboards.path_of(one) for one in dashboards.DASHBOARDS}
    assert set(dashboards.stale()) == paths
    for one in dashboards.DASHBOARDS:
        dashboards.path_of(one).write_text(dashboards.text_of(one))
    assert dashboards.stale() == []
    (tmp_path / "old.json").write_text("{}")
    assert dashboards.stale() == [tmp_path / "old.json"]


def test_panels_lie_beside_one_another() -> None:
    for one in dashboards.DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in dashboard_json(one)["panels"]:
            place = panel["gridPos"]
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                     for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
            assert not cells & taken
            assert place["x"] + place["w"] <= 24
            taken |= cells


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_says_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in SEVERITIES
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    page = REPOSITORY / annotations["runbook_url"]
    assert f"`{name}`" in page.read_text()
    assert f"`{name}`" in (REPOSITORY / "docs/runbooks/README.md").read_text()


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_is_tested_to_fire_and_not_to(name: str) -> None:
    files = [yaml.safe_load(path.read_text()) for path in (PROMETHEUS / "tests").glob("*.yml")]
    checks = [check for file in files for case in file["tests"] for check in case["alert_rule_test"]
              if check["alertname"] == name]  # fmt: skip
    assert any(check["exp_alerts"] for check in checks)
    assert any(not check["exp_alerts"] for check in checks)


def test_no_runbook_is_left_over() -> None:
    pages = {path.name for path in (REPOSITORY / "docs/runbooks").glob("*.md")} - {"README.md"}
    assert pages == {Path(rule["annotations"]["runbook_url"]).name for rule in ALERTS.values()}


def test_runbooks_name_metrics_that_are_exported() -> None:
    pages = (REPOSITORY / "docs/runbooks").glob("*.md")
    named = {name for page in pages for name in re.findall(r"\belite_\w+", page.read_text())}
    assert named
    assert named - exported() == set()


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs/runbooks").glob("*.md")), ids=str)
def test_links_between_runbooks_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists()


def test_what_is_scraped_is_what_serves() -> None:
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in jobs for static in job.get("static_configs", [])
               for target in static["targets"]}  # fmt: skip
    assert targets == {
        "localhost:9090", "profiler:9101", "planner:9102", "trainer-api:9103",
        "redis-exporter:9121", "node-exporter:9100",
    }  # fmt: skip
    (found,) = [job["dns_sd_configs"] for job in jobs if job["job_name"] == "worker"]
    assert found == [{"names": ["worker"], "type": "A", "port": 9104, "refresh_interval": "15s"}]


def test_a_target_that_does_not_answer_is_one_of_ours() -> None:
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    (named,) = re.findall(r'job=~"([^"]+)"', ALERTS["TargetDown"]["expr"])
    assert set(named.split("|")) == {job["job_name"] for job in jobs}


def test_grafana_finds_what_is_provisioned() -> None:
    folder = MONITORING / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())
    assert [one["uid"] for one in source["datasources"]] == ["prometheus"]
    asked = set(re.findall(r'"uid": "([^"]+)"', json.dumps(
        [panel for one in dashboards.DASHBOARDS for panel in dashboard_json(one)["panels"]]
    )))  # fmt: skip
    assert asked == {"prometheus"}


def test_the_webhook_is_read_from_a_file() -> None:
    alerting = yaml.safe_load((MONITORING / "alertmanager" / "alertmanager.yml").read_text())
    (receiver,) = alerting["receivers"]
    assert receiver["name"] == alerting["route"]["receiver"]
    assert set(receiver["webhook_configs"][0]) == {"url_file", "send_resolved"}
