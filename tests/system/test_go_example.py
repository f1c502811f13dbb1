"""`examples/go`, generated and built for real, against a real planner and a real trainer.

Needs Go and gRPC for it, as Debian 12 has them: `apt-get install --no-install-recommends golang-go
golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev protobuf-compiler libprotobuf-dev
protoc-gen-go protoc-gen-go-grpc`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench.planner import free_port, running_planner
from elite.trainer.v1 import trainer_pb2
from services.common.access import new_token
from tests.support.api_process import ApiProcess
from tests.support.needs import skip_without
from tests.support.trainer_stack import REPOSITORY, TrainerStack
from tests.support.valkey import Valkey

EXAMPLE = REPOSITORY / "examples" / "go"
PACKAGE = "elite.example/client"
# Debian has no module proxy but a GOPATH, with the modules' sources.
GOPATH = Path("/usr/share/gocode")
TOOLS = ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
SOURCES = ("google.golang.org/grpc", "google.golang.org/protobuf")
# gRPC is content with 1.3 of this, which cannot read what today's protoc-gen-go writes.
SOURCES += ("github.com/golang/protobuf/proto/registry.go",)
MISSING = [name for name in TOOLS if shutil.which(name) is None]
MISSING += [name for name in SOURCES if not (GOPATH / "src" / name).exists()]
MODEL_AND_GPU = ("qwen2.5-1.5b", "rtx-3090")

pytestmark = [
    skip_without(MISSING, f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a program."""
    workspace = tmp_path_factory.mktemp("go")
    package = workspace / "src" / PACKAGE
    package.mkdir(parents=True)
    subprocess.run([EXAMPLE / "generate.sh", package], check=True, timeout=60)
    shutil.copy(EXAMPLE / "main.go", package)
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": f"{workspace}:{GOPATH}"}
    for command in (["go", "vet", "."], ["go", "build", "-o", "client", "."]):
        subprocess.run(command, cwd=package, env=environment, check=True, timeout=500)
    return package / "client"


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a planner."""
    with running_planner(tmp_path_factory.mktemp("planner") / "log") as address:
        yield address


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TrainerStack, ApiProcess]]:
    """A trainer with a worker, and its API, which can be killed."""
    valkey = Valkey().start()
    stack = TrainerStack(tmp_path_factory.mktemp("trainer"), valkey)
    api = ApiProcess(stack)
    try:
        api.start()
        stack.start_worker()
        yield stack, api
    finally:
        api.close()
        stack.close()
        valkey.close()


def run(client: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(client), *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_it_is_formatted() -> None:
    listed = subprocess.run(
        ["gofmt", "-l", str(EXAMPLE / "main.go")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert listed.stdout == ""


def test_a_plan_is_what_the_python_example_prints(client: Path, planner: str) -> None:
    planned = run(client, "-planner", planner, *MODEL_AND_GPU)
    assert planned.returncode == 0, planned.stderr
    python = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "plan.py"), planner, *MODEL_AND_GPU],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "protos")},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert planned.stdout == python.stdout
    assert [line.split()[0] for line in planned.stdout.splitlines()] == ["tier", "GPU", "one"]


def test_a_refusal_says_why(client: Path, planner: str) -> None:
    refused = run(client, "-planner", planner, "gpt-9", "rtx-3090")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("NotFound: ")
    assert "gpt-9" in refused.stderr


def test_nobody_there(client: Path) -> None:
    refused = run(client, "-planner", f"127.0.0.1:{free_port()}", *MODEL_AND_GPU)
    assert refused.returncode == 1
    assert refused.stderr.startswith("Unavailable: ")


def test_arguments_are_asked_for(client: Path) -> None:
    asked = run(client, "qwen2.5-1.5b")
    assert asked.returncode == 2
    assert asked.stderr.startswith("usage: ")


def test_a_token_lets_it_in(client: Path, tmp_path: Path) -> None:
    token, digest = new_token()
    tokens = tmp_path / "tokens.yaml"
    entry = {"name": "go", "role": "viewer", "sha256": digest}
    tokens.write_text(yaml.safe_dump({"tokens": [entry]}))
    with running_planner(tmp_path / "log", tokens_file=str(tokens)) as address:
        without = run(client, "-planner", address, *MODEL_AND_GPU)
        having = run(client, "-planner", address, *MODEL_AND_GPU, ELITE_TOKEN=token)
    assert without.returncode == 1
    assert without.stderr.startswith("Unauthenticated: ")
    assert having.returncode == 0, having.stderr


def test_a_run_is_watched_to_its_end(client: Path, api: tuple[TrainerStack, ApiProcess]) -> None:
    stack, _ = api
    watched = run(client, "-trainer", stack.address, "-watch", stack.create(steps=4))
    assert watched.returncode == 0, watched.stderr
    lines = watched.stdout.splitlines()
    assert [line for line in lines if line.startswith("step")] == [
        "step 1 of 4: loss 2.7500",
        "step 2 of 4: loss 2.5000",
        "step 3 of 4: loss 2.2500",
        "step 4 of 4: loss 2.0000",
    ]
    assert any(line.startswith("running") for line in lines)
    assert lines[-1].startswith("succeeded")


def test_a_run_that_fails_is_a_failure(client: Path, api: tuple[TrainerStack, ApiProcess]) -> None:
    stack, _ = api
    run_id = stack.create("engine_failed=BAD_DATA")
    watched = run(client, "-trainer", stack.address, "-watch", run_id)
    assert watched.returncode == 1
    assert watched.stdout.splitlines()[-1].startswith("failed")
    assert watched.stderr == f"run {run_id} did not succeed\n"


def test_watching_survives_the_trainer(client: Path, api: tuple[TrainerStack, ApiProcess]) -> None:
    stack, process = api
    run_id = stack.create("pause=0.1", steps=60)
    command = [str(client), "-trainer", stack.address, "-watch", run_id]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        stack.wait_for_steps(run_id, 5)
        process.kill()
        process.start()
        output, errors = watching.communicate(timeout=60)
    assert watching.returncode == 0, errors
    assert "lost the trainer; trying again (1 of 6)" in errors
    steps = [int(line.split()[1]) for line in output.splitlines() if line.startswith("step")]
    assert steps == list(range(1, 61)), "each step once"
    stack.wait_for(run_id, trainer_pb2.RUN_STATE_SUCCEEDED)
