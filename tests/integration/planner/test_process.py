"""The planner as a process: it refuses a wrong ladder file, and drains on SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc

from bench.planner import free_port
from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc


def start(tmp_path: Path, **settings: str) -> subprocess.Popen[str]:
    environment = os.environ | {"ELITE_PLANNER_STATE_DIRECTORY": str(tmp_path / "state")}
    environment |= {f"ELITE_PLANNER_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "services.planner"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_wrong_ladder_file_is_named_and_nothing_starts(tmp_path: Path) -> None:
    ladder = tmp_path / "tiers.yaml"
    ladder.write_text("tiers: [{tier: 12}]")
    process = start(tmp_path, ladder_file=str(ladder))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"{ladder}: tiers[0].context_tokens: is missing" in errors
    assert "Traceback" not in errors


def test_a_wrong_setting_is_named_and_nothing_starts(tmp_path: Path) -> None:
    process = start(tmp_path, max_message_bytes="1")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith("elite planner: ELITE_PLANNER_MAX_MESSAGE_BYTES: ")


def test_a_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    process = start(tmp_path, address=address)
    try:
        with grpc.insecure_channel(address) as channel:
            stub = planner_pb2_grpc.PlannerServiceStub(channel)
            tiers = stub.ListTiers(pb.ListTiersRequest(), wait_for_ready=True, timeout=30).tiers
            assert len(tiers) == 11
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert '"stopped"' in errors
