"""API and worker as Redis users of their own, under the rules that are shipped."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.states import CANCELLED, SUCCEEDED
from services.trainer.settings import TrainerSettings
from tests.support.trainer_stack import REPOSITORY, TrainerStack
from tests.support.valkey import Valkey

_USERS = ("operator", "api", "worker", "metrics")
_SCRIPT = REPOSITORY / "deploy" / "redis" / "write_users.sh"


class GuardedValkey(Valkey):
    """Nobody may do anything without a password; tests look at it as the operator."""

    def __init__(self, folder: Path) -> None:
        self.secrets = folder
        users = folder / "users.acl"
        for user in _USERS:
            (folder / user).write_text(secrets.token_hex(16))
        subprocess.run([_SCRIPT, folder, users], check=True)
        super().__init__(aclfile=str(users))

    def password(self, user: str) -> str:
        return (self.secrets / user).read_text()

    def client(self, user: str = "operator") -> redis.Redis:
        return redis.Redis.from_url(self.socket_url, username=user, password=self.password(user))


class GuardedStack(TrainerStack):
    """Each part is its own user."""

    user = "api"

    def shared_settings(self) -> TrainerSettings:
        assert isinstance(self.valkey, GuardedValkey)
        credentials = {
            "redis_username": self.user,
            "redis_password_file": self.valkey.secrets / self.user,
        }
        return TrainerSettings(**{**super().shared_settings().model_dump(), **credentials})

    def environment(self) -> dict[str, str]:
        assert isinstance(self.valkey, GuardedValkey)
        return super().environment() | {
            "ELITE_TRAINER_REDIS_URL": self.valkey.url,
            "ELITE_TRAINER_REDIS_USERNAME": "worker",
            "ELITE_TRAINER_REDIS_PASSWORD_FILE": str(self.valkey.secrets / "worker"),
        }


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedStack]:
    valkey = GuardedValkey(tmp_path_factory.mktemp("secrets"))
    valkey.start()
    stack = GuardedStack(tmp_path_factory.mktemp("trainer"), valkey)
    stack.start_api()
    stack.start_worker()
    yield stack
    stack.close()
    valkey.close()


def test_runs_run_and_are_cancelled(guarded: GuardedStack) -> None:
    run_id = guarded.create("succeed")
    assert guarded.wait_for(run_id, SUCCEEDED, CANCELLED).state == SUCCEEDED
    kinds = [event.WhichOneof("event") for event in guarded.watch(run_id)]
    assert "adapter_saved" in kinds
    run_id = guarded.create("hang")
    guarded.engine_pid(run_id)
    guarded.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    guarded.wait_for(run_id, CANCELLED)
    assert "NOPERM" not in guarded.describe()
    with guarded.valkey.client() as client:
        denied = list(client.execute_command("ACL", "LOG"))
    assert denied == []


def test_what_they_wrote_survives_a_restart(guarded: GuardedStack) -> None:
    run_id = guarded.create("succeed")
    guarded.wait_for(run_id, SUCCEEDED)
    time.sleep(1.1)  # what the log may lack
    guarded.valkey.kill()
    guarded.valkey.start()
    guarded.wait_for(run_id, SUCCEEDED)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("api", ("CONFIG", "GET", "*")),
        ("api", ("FLUSHALL",)),
        ("worker", ("SHUTDOWN",)),
        ("worker", ("GET", "somebody-else")),
        ("api", ("ACL", "LIST")),
        ("api", ("PUBLISH", "/0.celery.pidbox", "shutdown")),
        ("worker", ("PUBLISH", "somebody-else", "x")),
        ("metrics", ("GET", "elite:workers")),
        ("metrics", ("KEYS", "*")),
    ],
)
def test_nobody_may_do_more(guarded: GuardedStack, user: str, command: tuple[str, ...]) -> None:
    assert isinstance(guarded.valkey, GuardedValkey)
    with guarded.valkey.client(user) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command)
    with (
        redis.Redis.from_url(guarded.valkey.socket_url) as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.execute_command(*command)
    with guarded.valkey.client("metrics") as client:
        assert client.info("server")
