"""`elite plan` and the catalogues with no server running."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.cli.command_line import Elite

CARD = ("--gpu", "rtx-3090", "--host-ram", "64GiB")
PLAN = ("plan", "--model", "qwen2.5-1.5b", *CARD)


def test_the_names_scripts_rely_on(elite: Elite) -> None:
    response = elite.json(*PLAN)
    chosen = response["chosen"]
    assert isinstance(chosen["tier"], int)
    assert int(chosen["gpuMemory"]["totalBytes"]) > 0
    assert int(chosen["hostMemory"]["totalBytes"]) > 0
    assert chosen["stepSeconds"] > 0
    assert all(item["id"] for item in chosen["optimizations"])
    assert [verdict["tier"] for verdict in response["tiers"]] == list(range(1, 12))
    for verdict in response["tiers"]:
        assert isinstance(verdict["fits"], bool)
        assert verdict["bindingResource"].startswith("RESOURCE_")
        assert (verdict["bindingResource"] == "RESOURCE_UNSPECIFIED") == verdict["fits"]
        assert int(verdict["shortfallBytes"]) >= 0
    assert int(response["budget"]["gpuBytes"]) >= int(chosen["gpuMemory"]["totalBytes"])
    assert int(response["budget"]["hostBytes"]) > 0


def test_the_table(elite: Elite) -> None:
    text = elite.run(*PLAN).stdout
    assert "4,194,304 + 524,288" in text
    assert "chosen" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_nothing_fits_says_what_binds_and_exits_with_one(elite: Elite) -> None:
    limited = (*PLAN, "--max-step-seconds", "1ms")
    response = elite.json(*limited, code=1)
    assert "chosen" not in response
    assert response["tiers"][0]["bindingResource"] == "RESOURCE_TIME"
    text = elite.run(*limited, code=1).stdout
    assert "Nothing fits." in text


def test_a_folder_and_a_config_give_the_same_plan(elite: Elite, tiny_model: Path) -> None:
    folder = elite.json("plan", "--model", str(tiny_model), *CARD)
    config = elite.json("plan", "--model", str(tiny_model / "config.json"), *CARD)
    assert folder == config
    assert folder["model"]["modelType"] == "llama"


def test_a_plan_without_services_leaves_no_socket_behind(
    elite: Elite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    elite.json(*PLAN)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("tiers", "tiers"),
        ("models", "models"),
        ("gpus", "gpus"),
        ("optimizations", "optimizations"),
    ],
)
def test_catalogues(elite: Elite, command: str, key: str) -> None:
    assert len(elite.json(command)[key]) >= 4
    assert len(elite.run(command).stdout.splitlines()) >= 4


def test_a_profile_of_this_machine(elite: Elite) -> None:
    profile = elite.json("profile")["profile"]
    assert profile["devices"]
    assert int(profile["host"]["memoryTotalBytes"]) > 0
    assert "Host" in elite.run("profile").stdout


def test_an_estimate_of_one_tier(elite: Elite) -> None:
    chosen = elite.json(*PLAN)["chosen"]
    options = [part for item in chosen["optimizations"] for part in ("--optimization", item["id"])]
    estimate = ("estimate", "--model", "qwen2.5-1.5b", *CARD, "--tier", str(chosen["tier"]))
    response = elite.json(*estimate, *options)
    assert response["verdict"]["fits"] is True
    assert response["plan"]["gpuMemory"] == chosen["gpuMemory"]


BAD_INPUTS = [
    (["--model", "no-such-model", *CARD], "model.model_id", "--model"),
    (["--model", "qwen2.5-1.5b", "--gpu", "no-card", "--host-ram", "64g"], "gpu_id", "--gpu"),
    (["--model", "qwen2.5-1.5b", *CARD, "--tier", "99"], "constraints.tier", "--tier"),
    (["--model", "qwen2.5-1.5b", *CARD, "--headroom", "1.5"], "headroom_fraction", "--headroom"),
    (["--model", "qwen2.5-1.5b", "--gpu", "rtx-3090", "--host-ram", "64"], "--host-ram", ""),
    (["--model", "qwen2.5-1.5b", *CARD, "--max-step-seconds", "-2h"], "--max-step-seconds", ""),
]


@pytest.mark.parametrize(("arguments", "field", "option"), BAD_INPUTS)
def test_bad_input_names_field_and_option(
    elite: Elite, arguments: list[str], field: str, option: str
) -> None:
    done = elite.run("plan", *arguments, "--json", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert field in done.stderr
    assert option in done.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{not json", "config_json"),
        ("[]", "config_json"),
        (json.dumps({"model_type": "mamba"}), "mamba"),
        (json.dumps({"model_type": "llama"}), "hidden_size"),
    ],
)
def test_bad_configs(elite: Elite, tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "config.json").write_text(config)
    done = elite.run("plan", "--model", str(tmp_path), *CARD, code=2)
    assert done.stderr.startswith("error: model.config_json")
    assert words in done.stderr


def test_an_unreachable_planner_is_named(elite: Elite) -> None:
    done = elite.run(*PLAN, "--planner-address", "127.0.0.1:1", code=3)
    assert "planner at 127.0.0.1:1: cannot be reached" in done.stderr
