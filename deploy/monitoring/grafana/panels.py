"""Small builders for Grafana dashboards: plain dictionaries in Grafana's own JSON format.

https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["timeseries", "stat", "bargauge", "state-timeline"]
Json = dict[str, Any]

_DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
_COLUMNS = 24
_SCHEMA_VERSION = 39


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and how its series are called; "{{name}}" stands for the value of a label."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. unit: as Grafana calls it; width: of 24 columns."""

    title: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "timeseries"
    text: str = ""
    width: int = 8
    height: int = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading. They are laid out from left to right, then down."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice above the dashboard, from the values of a label."""

    name: str
    label: str
    metric: str
    metric_label: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()

    def panels(self) -> list[Panel]:
        """All of them, in order."""
        return [panel for row in self.rows for panel in row.panels]


def dashboard_json(dashboard: Dashboard) -> Json:
    """What Grafana reads."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["elite"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_variable_json(variable) for variable in dashboard.variables]},
        "panels": _laid_out(dashboard.rows),
    }


def _laid_out(rows: Sequence[Row]) -> list[Json]:
    """Headings and panels, each with its place."""
    placed: list[Json] = []
    top = 0
    for row in rows:
        place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        placed.append({"type": "row", "title": row.title, "gridPos": place, "panels": []})
        left, top, tallest = 0, top + 1, 0
        for panel in row.panels:
            if left + panel.width > _COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            placed.append(_panel_json(panel) | {"gridPos": place})
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    for number, found in enumerate(placed, 1):
        found["id"] = number
    return placed


def _panel_json(panel: Panel) -> Json:
    described: Json = {"description": panel.text} if panel.text else {}
    return {
        "type": panel.kind,
        "title": panel.title,
        **described,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [_target_json(query, number) for number, query in enumerate(panel.queries)],
    }


def _target_json(query: Query, number: int) -> Json:
    return {
        "refId": chr(ord("A") + number),
        "datasource": _DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
    }


def _variable_json(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.metric_label})"
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": variable.name},
        # Again when the time range changes, so that runs of the past can be chosen.
        "refresh": 2,
        # Run ids begin with their date: the newest first.
        "sort": 2,
    }
