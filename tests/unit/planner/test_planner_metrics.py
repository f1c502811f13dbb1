"""What the planner tells Prometheus before anything has happened."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from services.planner.metrics import PREDICTED_RESOURCES, PlannerMetrics


@pytest.mark.parametrize("resource", PREDICTED_RESOURCES)
def test_a_first_report_is_a_rise_from_zero(resource: str) -> None:
    registry = CollectorRegistry()
    metrics = PlannerMetrics(registry)
    labels = {"resource": resource}
    name = "elite_planner_prediction_error_ratio_count"
    assert registry.get_sample_value(name, labels) == 0
    metrics.prediction_error.labels(resource).observe(0.01)
    assert registry.get_sample_value(name, labels) == 1
