"""The planner's own metrics, beside those every server has."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

# predicted / measured - 1: from half of what was measured to twice.
_ERROR_BUCKETS = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)

# What a reported run is compared in.
PREDICTED_RESOURCES = ("gpu_memory", "host_memory", "step_time")


class PlannerMetrics:
    """Plans by tier, refusals by resource, prediction errors."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.plans = Counter(
            "elite_planner_plans",
            'Answered Plan calls by chosen tier; "none" when no tier fits.',
            ["tier"],
            registry=registry,
        )
        self.refused_tiers = Counter(
            "elite_planner_refused_tiers",
            "Tiers that did not fit, by the resource that binds.",
            ["resource"],
            registry=registry,
        )
        self.prediction_error = Histogram(
            "elite_planner_prediction_error_ratio",
            "Predicted over measured, less one, of reported runs.",
            ["resource"],
            buckets=_ERROR_BUCKETS,
            registry=registry,
        )
        # Reports are rare: a first one counts as a rise only where there was a zero before it.
        for resource in PREDICTED_RESOURCES:
            self.prediction_error.labels(resource)
