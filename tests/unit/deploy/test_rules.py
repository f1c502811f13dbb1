"""The rules for the Prometheus operator are those of deploy/monitoring."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.kubernetes import rules
from deploy.kubernetes.manifests import of_kind


def test_they_are_fresh() -> None:
    assert rules.is_fresh(), "run python -m deploy.kubernetes.rules"


def test_a_stale_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "TARGET", tmp_path / "rules.yaml")
    assert not rules.is_fresh()
    monkeypatch.setattr("sys.argv", ["rules", "--check"])
    assert rules.main() == 1
    monkeypatch.setattr("sys.argv", ["rules"])
    assert rules.main() == 0
    assert rules.is_fresh()


def test_production_has_every_rule_once() -> None:
    (rendered,) = of_kind("production", "PrometheusRule")
    groups = rendered["spec"]["groups"]
    assert len({group["name"] for group in groups}) == len(groups)
    sources = [yaml.safe_load(path.read_text()) for path in rules.SOURCES.glob("*.yml")]
    written = [rule for file in sources for group in file["groups"] for rule in group["rules"]]
    shipped = [rule for group in groups for rule in group["rules"]]
    by_name = {rule.get("alert") or rule["record"]: rule for rule in written}
    assert {rule.get("alert") or rule["record"]: rule for rule in shipped} == by_name
    assert len(shipped) == len(written)
    assert rendered["metadata"]["namespace"] == "elite"
