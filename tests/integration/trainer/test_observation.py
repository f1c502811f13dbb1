"""What Prometheus and the planner learn from the trainer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from elite.planner.v1 import planner_pb2, planner_pb2_grpc
from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from services.trainer.api.collector import FleetCollector
from services.trainer.jobs.keys import queue_name
from services.trainer.jobs.queue import TASK_NAME, make_celery
from tests.support.run_specs import CONTEXT_TOKENS, TARGET_TOKENS, a_plan
from tests.support.trainer_stack import REPOSITORY, TrainerStack, wait_until

SUCCEEDED = trainer_pb2.RUN_STATE_SUCCEEDED
FAILED = trainer_pb2.RUN_STATE_FAILED

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def scrape(address: str) -> Samples:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("elite_trainer_")
    }


def answers(address: str) -> bool:
    try:
        scrape(address)
    except OSError:
        return False
    return True


class RecordingPlanner(planner_pb2_grpc.PlannerServiceServicer):
    def __init__(self) -> None:
        self.outcomes: list[planner_pb2.ReportOutcomeRequest] = []

    def ReportOutcome(  # noqa: N802
        self,
        request: planner_pb2.ReportOutcomeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> planner_pb2.ReportOutcomeResponse:
        self.outcomes.append(request)
        return planner_pb2.ReportOutcomeResponse(recorded_outcomes=len(self.outcomes))


@pytest.fixture
def planner() -> Iterator[tuple[str, RecordingPlanner]]:
    servicer = RecordingPlanner()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    planner_pb2_grpc.add_PlannerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None)


def test_worker_metrics_follow_its_runs(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    address = free_address()
    worker = stack.start_worker(metrics_address=address)
    wait_until(lambda: answers(address), "metrics", worker.log)
    idle = scrape(address)
    assert idle[("elite_trainer_runs_finished_total", (("state", "succeeded"),))] == 0

    stack.wait_for(stack.create("succeed", steps=4), SUCCEEDED)
    stack.wait_for(stack.create("crash"), FAILED)
    run_id = stack.create("pause=0.05", steps=1000)
    stack.wait_for_steps(run_id, 1)
    busy = scrape(address)
    info = (("model", "tiny"), ("run_id", run_id), ("tier", "1"))
    assert busy[("elite_trainer_run_info", info)] == 1
    assert [name for name, _ in busy].count("elite_trainer_run_info") == 1
    assert busy[("elite_trainer_runs_finished_total", (("state", "succeeded"),))] == 1
    assert busy[("elite_trainer_runs_finished_total", (("state", "failed"),))] == 1
    steps = busy[("elite_trainer_steps_total", ())]
    assert steps >= 5
    assert busy[("elite_trainer_tokens_total", ())] == steps * (CONTEXT_TOKENS + TARGET_TOKENS)
    assert busy[("elite_trainer_step_seconds_count", ())] == steps
    assert 0 < busy[("elite_trainer_loss", ())] <= 3.0
    assert busy[("elite_trainer_measured_peak_bytes", ())] == 1000
    assert busy[("elite_trainer_predicted_peak_bytes", ())] == 1100

    stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    stack.wait_for(run_id, trainer_pb2.RUN_STATE_CANCELLED)
    wait_until(lambda: ("elite_trainer_run_info", info) not in scrape(address), "no run info")
    assert scrape(address)[("elite_trainer_engine_stops_total", (("reason", "cancel"),))] == 1


def test_a_message_for_an_ended_run_and_a_hanging_engine_are_counted(
    lonely_trainer: TrainerStack,
) -> None:
    stack = lonely_trainer
    address = free_address()
    stack.start_worker(metrics_address=address, stall_seconds=1, maximum_deliveries=1)
    run_id = stack.create()
    stack.wait_for(run_id, SUCCEEDED)
    celery = make_celery(stack.shared_settings())
    celery.send_task(TASK_NAME, args=[run_id], queue=queue_name("cpu"))
    celery.close()
    ignored = ("elite_trainer_deliveries_total", (("outcome", "ignored"),))
    wait_until(lambda: scrape(address)[ignored] == 1, "an ignored message", stack.describe)
    stack.wait_for(stack.create("hang"), FAILED)
    stalled = ("elite_trainer_engine_stops_total", (("reason", "stall"),))
    wait_until(lambda: scrape(address)[stalled] == 1, "a hanging engine", stack.describe)


def test_a_run_whose_worker_died_is_counted(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    run_id = stack.create("pause=0.05", steps=1000)
    stack.wait_for_steps(run_id, 1)
    before = REGISTRY.get_sample_value("elite_trainer_lease_expirations_total") or 0
    worker.kill()
    stack.wait_for(run_id, trainer_pb2.RUN_STATE_RESUMING)
    assert REGISTRY.get_sample_value("elite_trainer_lease_expirations_total") == before + 1


def test_metrics_come_back_with_a_new_pool_child(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    address = free_address()
    worker = stack.start_worker(metrics_address=address)
    os.kill(worker.pool_child, signal.SIGKILL)
    wait_until(lambda: answers(address), "metrics", worker.log)
    stack.wait_for(stack.create(), SUCCEEDED)
    finished = ("elite_trainer_runs_finished_total", (("state", "succeeded"),))
    # The run's record says so before the counter does.
    wait_until(lambda: scrape(address)[finished] == 1, "one run counted", worker.log)


def test_outcomes_are_reported_to_the_planner(
    lonely_trainer: TrainerStack, planner: tuple[str, RecordingPlanner]
) -> None:
    stack = lonely_trainer
    address, servicer = planner
    stack.start_worker(planner_address=address)
    # Two in a row: the second engine is forked after gRPC was used.
    run_ids = [stack.create("succeed pause=0.02", steps=5) for _ in range(2)]
    for run_id in run_ids:
        stack.wait_for(run_id, SUCCEEDED)
    wait_until(lambda: len(servicer.outcomes) == 2, "two reports", stack.describe)
    assert [outcome.run_id for outcome in servicer.outcomes] == run_ids
    outcome = servicer.outcomes[0]
    assert outcome.plan == a_plan()
    assert outcome.device_name == "fake device"
    assert outcome.measured_gpu_peak_bytes == 1000
    assert outcome.measured_host_peak_bytes == 5000
    assert outcome.measured_step_seconds == 0.02
    assert not outcome.out_of_memory
    assert outcome.torch_version


def test_run_succeeds_although_the_planner_is_away(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker(planner_address=free_address())
    assert stack.wait_for(stack.create(), SUCCEEDED, FAILED).state == SUCCEEDED
    wait_until(lambda: "planner took no outcome" in worker.log(), "a log line", worker.log)


def test_api_process_serves_and_counts_what_the_store_holds(
    lonely_trainer: TrainerStack, tmp_path: Path
) -> None:
    stack = lonely_trainer
    address, metrics_address = free_address(), free_address()
    environment = {
        **stack.environment(),
        "ELITE_TRAINER_API_ADDRESS": address,
        "ELITE_TRAINER_API_METRICS_ADDRESS": metrics_address,
    }
    log_path = tmp_path / "api.log"
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "services.trainer.api"]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=log)
    try:
        wait_until(lambda: answers(metrics_address), "metrics", log_path.read_text)
        for _ in range(3):
            stack.create()
        with grpc.insecure_channel(address) as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            runs = stub.ListRuns(trainer_pb2.ListRunsRequest(), wait_for_ready=True, timeout=10)
        assert len(runs.runs) == 3
        counted = scrape(metrics_address)
        assert counted[("elite_trainer_runs", (("state", "planned"),))] == 3
        assert counted[("elite_trainer_runs", (("state", "running"),))] == 0
        assert counted[("elite_trainer_queue_depth", ())] == 3
        assert counted[("elite_trainer_workers_connected", ())] == 0
        assert counted[("elite_trainer_store_up", ())] == 1
        on_cpu = (("device_class", "cpu"),)
        assert counted[("elite_trainer_waiting_runs", on_cpu)] == 3
        assert counted[("elite_trainer_workers", on_cpu)] == 0
        assert counted[("elite_trainer_runs_without_lease", ())] == 0
        listed = (("code", "OK"), ("method", "ListRuns"))
        assert counted[("elite_trainer_rpc_requests_total", listed)] == 1

        stack.start_worker()
        assert scrape(metrics_address)[("elite_trainer_workers_connected", ())] == 1
        stack.valkey.kill()
        without_store = scrape(metrics_address)
        assert ("elite_trainer_waiting_runs", on_cpu) not in without_store
        assert without_store[("elite_trainer_store_up", ())] == 0
        assert ("elite_trainer_queue_depth", ()) not in without_store
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def fleet(stack: TrainerStack) -> Samples:
    """What the API's collector says now."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in FleetCollector(stack.shared_settings()).collect()
        for sample in family.samples
    }


def test_a_worker_with_a_run_is_idle_for_no_class(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    stack.start_worker(device_classes="cpu,nvidia-h200")
    cpu, card = ((("device_class", name),) for name in ("cpu", "nvidia-h200"))
    idle = fleet(stack)
    assert [idle[("elite_trainer_idle_workers", name)] for name in (cpu, card)] == [1, 1]
    run_id = stack.create("pause=0.05", steps=1000)
    stack.wait_for_steps(run_id, 1)
    busy = fleet(stack)
    assert [busy[("elite_trainer_workers", name)] for name in (cpu, card)] == [1, 1]
    assert [busy[("elite_trainer_idle_workers", name)] for name in (cpu, card)] == [0, 0]
    assert [busy[("elite_trainer_running_runs", name)] for name in (cpu, card)] == [1, 0]
    stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    stack.wait_for(run_id, trainer_pb2.RUN_STATE_CANCELLED)
    assert fleet(stack)[("elite_trainer_idle_workers", cpu)] == 1


def test_a_run_without_a_lease_is_seen(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    stack.wait_for_steps(stack.create("pause=0.05", steps=1000), 1)
    without_lease = ("elite_trainer_runs_without_lease", ())
    assert fleet(stack)[without_lease] == 0
    worker.kill()
    wait_until(lambda: fleet(stack)[without_lease] == 1, "a lease to expire", worker.log)


def test_a_worker_that_leaves_is_not_counted(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    assert worker.terminate() == 0
    assert not worker.is_present
    assert stack.get(stack.create()).status_detail == "waiting: no worker for cpu is connected"
