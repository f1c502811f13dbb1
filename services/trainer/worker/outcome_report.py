"""Tells the planner what a run really took. Best effort: a run does not fail for it."""

from __future__ import annotations

import asyncio
import logging
from importlib import metadata

import grpc

from elite.planner.v1 import planner_pb2, planner_pb2_grpc
from elite.trainer.v1 import trainer_pb2
from services.common.transport import open_channel
from services.trainer.worker.progress import ProgressTracker

logger = logging.getLogger("elite.trainer.worker")

_DEADLINE_SECONDS = 5.0


async def report_outcome(address: str, run: trainer_pb2.Run, tracker: ProgressTracker) -> None:
    """Sends peaks and step time, if there is a planner and anything was measured."""
    if not address or not tracker.device_peak_bytes:
        return
    request = outcome_request(run, tracker)
    try:
        response = await asyncio.to_thread(_send, address, request)
    except grpc.RpcError as error:
        logger.warning("planner took no outcome", extra={"address": address, "error": str(error)})
        return
    logger.info(
        "outcome reported",
        extra={
            "run_id": run.run_id,
            "gpu_memory_error": response.gpu_memory_error,
            "step_time_error": response.step_time_error,
        },
    )


def outcome_request(
    run: trainer_pb2.Run, tracker: ProgressTracker
) -> planner_pb2.ReportOutcomeRequest:
    """The report. The torch version is that of the worker's environment."""
    failure = tracker.failure
    # A plan's step is one window; the engine's is as many as gradients are accumulated over.
    windows = max(1, run.spec.training.gradient_accumulation_steps)
    return planner_pb2.ReportOutcomeRequest(
        run_id=run.run_id,
        plan=run.spec.plan,
        # As the profile calls it: what is learned is kept under that name.
        device_name=run.spec.plan.planned_on.device_name or tracker.device_name,
        measured_gpu_peak_bytes=tracker.device_peak_bytes,
        measured_host_peak_bytes=tracker.host_peak_bytes,
        measured_step_seconds=tracker.median_step_seconds / windows,
        out_of_memory=failure is not None
        and failure.cause == trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY,
        torch_version=_installed_version("torch"),
    )


def _send(
    address: str, request: planner_pb2.ReportOutcomeRequest
) -> planner_pb2.ReportOutcomeResponse:
    with open_channel(address) as channel:
        stub = planner_pb2_grpc.PlannerServiceStub(channel)
        response: planner_pb2.ReportOutcomeResponse = stub.ReportOutcome(
            request, timeout=_DEADLINE_SECONDS
        )
        return response


def _installed_version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
