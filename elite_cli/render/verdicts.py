"""Whether a tier fits, and what would make it fit, in words."""

from __future__ import annotations

from elite.planner.v1 import planner_pb2
from elite_cli.quantities import format_bytes, format_duration
from elite_cli.render.names import resource_name


def verdict_text(
    verdict: planner_pb2.TierVerdict,
    budget: planner_pb2.Budget,
    chosen: int = 0,
    *,
    short: bool = False,
) -> str:
    """ "fits", "chosen", "lacks 24.1 GiB host memory", "2 min 19 s too slow"."""
    if verdict.fits:
        return "chosen" if verdict.tier == chosen else "fits"
    resource = resource_name(verdict.binding_resource, budget)
    if short:
        resource = resource.removesuffix(" memory")
    if verdict.shortfall_bytes:
        return f"lacks {format_bytes(verdict.shortfall_bytes)} {resource}"
    if verdict.shortfall_seconds:
        return f"{format_duration(verdict.shortfall_seconds)} too slow"
    return f"{resource} is missing"


def remedy_texts(verdict: planner_pb2.TierVerdict) -> list[str]:
    """All single changes that would make the tier fit, the smallest first."""
    texts = [remedy.text for remedy in verdict.remedies]
    return texts or ([verdict.remedy] if verdict.remedy else [])


def short_remedy(verdict: planner_pb2.TierVerdict) -> str:
    """The first of them in a few words; empty where the verdict says as much."""
    remedy = next(iter(verdict.remedies), None)
    if remedy is None:
        return ""
    if remedy.optimization_id:
        return f"allow {remedy.optimization_id}"
    if remedy.gpu_id:
        return f"a card like {remedy.gpu_id}"
    if remedy.bytes and remedy.resource == verdict.binding_resource:
        return ""
    return remedy.text
