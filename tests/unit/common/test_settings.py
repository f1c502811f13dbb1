"""Variables that are wrong are named before anything starts."""

from __future__ import annotations

import pytest
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.settings import ServerSettings, read_settings


class Shared(BaseSettings):
    """What two programs read."""

    model_config = SettingsConfigDict(env_prefix="TEST_SHARED_")

    url: str = "redis://h"

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value.startswith("redis"):
            raise ValueError("must start with redis")
        return value


class Own(ServerSettings):
    """Of one of them."""

    model_config = SettingsConfigDict(env_prefix="TEST_OWN_")

    address: str = "127.0.0.1:0"
    processes: int = Field(default=1, ge=0)
    shared: Shared = Field(default_factory=Shared)


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        ({"TEST_OWN_MAX_MESSAGE_BYTES": "1", "TEST_OWN_PROCESSES": "-1"},
         ["TEST_OWN_MAX_MESSAGE_BYTES: input should be greater than or equal to 1024",
          "TEST_OWN_PROCESSES: input should be greater than or equal to 0"]),
        ({"TEST_OWN_LOG_LEVEL": "TRACE"},
         ["TEST_OWN_LOG_LEVEL: input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"]),
        ({"TEST_SHARED_URL": "http://user:secret@h"}, ["TEST_SHARED_URL: must start with redis"]),
    ],
)  # fmt: skip
def test_each_wrong_variable_is_a_line(
    variables: dict[str, str],
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        read_settings(Own, "test")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"elite test: {line}" for line in lines]


def test_good_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_OWN_PROCESSES", "3")
    assert read_settings(Own, "test").processes == 3
