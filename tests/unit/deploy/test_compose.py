"""What ships for Docker fits what the services read. The images run in tests/system."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from services.planner.settings import PlannerSettings
from services.profiler.settings import ProfilerSettings
from services.trainer.api.settings import TrainerApiSettings
from services.trainer.settings import TrainerSettings
from services.trainer.worker.settings import TrainerWorkerSettings
from tests.support.trainer_stack import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("elite/")]
SETTINGS: tuple[type[BaseSettings], ...] = (
    PlannerSettings, ProfilerSettings, TrainerApiSettings, TrainerSettings, TrainerWorkerSettings,
)  # fmt: skip


def variables() -> set[str]:
    """Every variable that a service reads."""
    return {
        f"{kind.model_config['env_prefix']}{name.upper()}"
        for kind in SETTINGS
        for name in kind.model_fields
    }


def test_every_variable_is_one_that_is_read() -> None:
    texts = [DOCKERFILE, (DEPLOY / "compose" / "compose.yaml").read_text()]
    used = {name for text in texts for name in re.findall(r"ELITE_[A-Z_]+(?=[=:])", text)}
    assert used
    of_compose = {name for name in used if name.endswith(("_PORT", "_DATA", "_MODELS"))}
    assert used - of_compose - variables() == set()


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_can_do_much(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["restart"] == "unless-stopped"
    assert "max-size" in service["logging"]["options"], "logs would fill the disk"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_nobody_in_particular(name: str) -> None:
    assert SERVICES[name]["user"] == "10001:10001"


def test_images_are_targets_and_listen_where_they_say() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    for name in OURS:
        image = SERVICES[name]["image"].partition("/")[2].partition(":")[0]
        assert image in targets
    exposed = {port for line in re.findall(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
               for port in line.split()}  # fmt: skip
    listening = re.findall(r"_ADDRESS=0\.0\.0\.0:(\d+)", DOCKERFILE)
    assert exposed == set(listening)
    assert len(listening) == len(set(listening))
    published = {port.rsplit(":")[-1] for name in OURS for port in SERVICES[name].get("ports", ())}
    assert published <= exposed


def test_every_image_can_send_traces_and_be_asked_for_its_health() -> None:
    installs = re.findall(r"^RUN \./install\.sh (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(installs) == len(OURS)
    assert all("tracing" in extras.split(",") for extras in installs)
    asked = re.findall(r'services\.common\.probe", "(?:http://)?127\.0\.0\.1:(\d+)', DOCKERFILE)
    assert len(asked) == len(OURS)
    assert set(asked) <= set(re.findall(r"_ADDRESS=0\.0\.0\.0:(\d+)", DOCKERFILE))


def test_a_worker_has_time_to_save() -> None:
    seconds = float(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds > TrainerWorkerSettings().drain_grace_seconds
    assert SERVICES["worker"]["environment"]["ELITE_TRAINER_RUNS_DIRECTORY"] in "".join(
        SERVICES["worker"]["volumes"]
    )


def test_secrets_are_files_that_the_script_makes() -> None:
    script = (REPOSITORY / "scripts" / "compose_secrets.sh").read_text()
    for secret in COMPOSE["secrets"].values():
        assert Path(secret["file"]).name in script
    used = {name for service in SERVICES.values() for name in service.get("secrets", ())}
    assert used == COMPOSE["secrets"].keys()
    for name in OURS:
        for variable, value in SERVICES[name].get("environment", {}).items():
            assert "PASSWORD" not in variable or value.startswith("/run/secrets/")


def test_the_card_is_only_in_its_overlay() -> None:
    overlay = yaml.safe_load((DEPLOY / "compose" / "compose.gpu.yaml").read_text())["services"]
    assert overlay.keys() <= SERVICES.keys()
    for service in overlay.values():
        assert service["image"].endswith("-cuda")
    assert "driver: nvidia" not in (DEPLOY / "compose" / "compose.yaml").read_text()
