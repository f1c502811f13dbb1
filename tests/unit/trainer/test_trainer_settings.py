"""Settings: what operators write into the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.trainer.settings import TrainerSettings
from services.trainer.worker.settings import TrainerWorkerSettings


def test_roots_are_separated_like_a_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELITE_TRAINER_DATA_ROOTS", "/data:/more data:")
    monkeypatch.setenv("ELITE_TRAINER_MODEL_ROOTS", "")
    settings = TrainerSettings()
    assert settings.data_roots == (Path("/data"), Path("/more data"))
    assert settings.model_roots == ()


def test_nothing_may_be_read_by_default() -> None:
    assert TrainerSettings().data_roots == ()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://user:secret@example:6380/1", "example:6380"),
        ("rediss://example", "example:6379"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
    ],
)
def test_redis_place_shows_no_password(url: str, place: str) -> None:
    assert TrainerSettings(redis_url=url).redis_place == place


def test_unknown_redis_scheme_is_refused() -> None:
    with pytest.raises(ValidationError, match="must start with one of redis, rediss, unix"):
        TrainerSettings(redis_url="http://localhost")


@pytest.mark.parametrize(
    ("url", "user", "whole"),
    [
        ("redis://redis:6379/0", "api", "redis://api:s%2Fe%40c@redis:6379/0"),
        ("rediss://worker:old@redis/2", "", "rediss://worker:s%2Fe%40c@redis/2"),
        ("redis://redis", "", "redis://:s%2Fe%40c@redis"),
    ],
)
def test_the_password_comes_from_a_file(tmp_path: Path, url: str, user: str, whole: str) -> None:
    (tmp_path / "password").write_text("s/e@c\n")
    settings = TrainerSettings(
        redis_url=url, redis_username=user, redis_password_file=tmp_path / "password"
    )
    assert settings.redis_url == whole


def test_a_wrong_password_file_is_named_and_no_secret_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"redis_password_file: .*none: .*No such file"):
        TrainerSettings(redis_password_file=tmp_path / "none")
    with pytest.raises(ValidationError, match="redis_password_file: needs a redis_url of redis"):
        TrainerSettings(redis_url="unix:///a", redis_password_file=tmp_path / "none")
    with pytest.raises(ValidationError) as refused:
        TrainerSettings(redis_url="http://user:secret@host")
    assert "secret" not in str(refused.value)


def test_engine_command_is_split_as_a_shell_would(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainerWorkerSettings().engine_command[1:] == ("-m", "services.trainer.engine")
    monkeypatch.setenv("ELITE_TRAINER_WORKER_ENGINE_COMMAND", "numactl -N 0 'my python' -m engine")
    expected = ("numactl", "-N", "0", "my python", "-m", "engine")
    assert TrainerWorkerSettings().engine_command == expected
    monkeypatch.setenv("ELITE_TRAINER_WORKER_ENGINE_COMMAND", " ")
    with pytest.raises(ValidationError, match="names no program"):
        TrainerWorkerSettings()


def test_a_lease_is_renewed_three_times_before_it_ends() -> None:
    shared = TrainerSettings(lease_seconds=3)
    assert TrainerWorkerSettings(trainer=shared, poll_seconds=1).poll_seconds == 1
    with pytest.raises(ValidationError, match=r"poll_seconds: 1\.1 is more than a third of"):
        TrainerWorkerSettings(trainer=shared, poll_seconds=1.1)


@pytest.mark.parametrize("module", ["services.trainer.worker.app", "services.trainer.api.servicer"])
def test_neither_api_nor_worker_imports_torch(module: str) -> None:
    check = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    paths = ":".join(sys.path)
    subprocess.run([sys.executable, "-c", check], env={"PYTHONPATH": paths}, check=True)
