"""The command line itself: global options, errors, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from elite_cli.main import global_options_first, main
from elite_cli.options import option_of_field


@pytest.mark.parametrize(
    ("written", "ordered"),
    [
        (["plan", "--model", "m"], ["plan", "--model", "m"]),
        (
            ["up", "--state-directory", "d", "--port-base", "0"],
            ["--state-directory", "d", "up", "--port-base", "0"],
        ),
        (["runs", "list", "--trainer-address=a:1"], ["--trainer-address=a:1", "runs", "list"]),
        (["plan", "--verbose", "--json"], ["--verbose", "plan", "--json"]),
        (["plan", "--state-directory"], ["--state-directory", "plan"]),
        (["runs", "show", "--", "--verbose"], ["runs", "show", "--", "--verbose"]),
    ],
)
def test_global_options_may_stand_anywhere(written: list[str], ordered: list[str]) -> None:
    assert global_options_first(written) == ordered


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("model.config_json", "--model"), ("constraints.tier", "--tier"),
        ("spec.data.path", "--data"), ("spec.data.include_globs[3]", "--include"),
        ("spec.plan.execution.executor", "--plan"), ("run_id", ""),
        ("schedule.curriculum[0].tier", "--stage"), ("gpu_ids[2]", "--compare"),
        ("constraints.allowed_lossy_ids[0]", "--allow"), ("adapters.rank", "--rank"),
        ("spec.max_run_seconds", "--stop-after"), ("spec.priority", "--priority"),
        ("spec.display_name", "--name"), ("page_size", "--page-size"),
        ("page_token", "--page-token"), ("spec.training.weight_decay", ""),
    ],
)  # fmt: skip
def test_fields_and_their_options(field: str, option: str) -> None:
    assert option_of_field(field) == option


BAD_LINES = [
    (["plan", "--model", "m", "--host-ram", "64"], "--host-ram: '64' is only 64 bytes"),
    (["plan", "--model", "m", "--gpu", "g", "--disk", "-1g"], "--disk: '-1g' is negative"),
    (["plan", "--model", "m", "--max-step-seconds", "x"], "--max-step-seconds: 'x' is not"),
    (["plan", "--model", "m", "--gpu", ""], "--gpu: is empty"),
    (["plan", "--model", "m", "--compare", " "], "--compare: is empty"),
    (["plan", "--model", "m", "--gpu", "g", "--device", "0"], "--device: does not go with --gpu"),
    (["plan", "--model", "m", "--compare", "a", "--gpu", "b"], "--gpu: does not go with --comp"),
    (["plan", "--model", "m", "--compare", "a", "--device", "0"], "--device: does not go with"),
    (["plan", "--model", "m", "--compare", "a", "--explain"], "--explain: does not go with"),
    (["plan", "--model", "m", "--compare", "a,,b"], "--compare: 'a,,b' has an empty name"),
    (["plan", "--model", "m", "--target-modules", "q,"], "--target-modules: 'q,' has an empty"),
    (["plan", "--model", "m", "--stage", "4"], "--stage: '4' is not TIER:STEPS"),
    (["plan", "--model", "m", "--stage", "0:4"], "--stage: '0:4' is out of range"),
    (["plan", "--model", "m", "--max-run-time", "x"], "--max-run-time: 'x' is not a duration"),
    (["plan", "--model", "m", "--chart", "plan.jpg"], "--chart: 'plan.jpg' has an unknown suffix"),
    (["plan", "--model", "m", "--chart", "plan"], "--chart: plan has no suffix: give a file name"),
    (["plan", "--model", "m", "--chart", "/no/such/p.png"], "--chart: there is no folder /no/such"),
    (["plan", "--model", "./no/such"], "--model: './no/such' is no file"),
    (["profile", "--quick"], "--quick: is for the stress test: add --stress"),
    (["up", "--port-base", "80"], "--port-base: is 80: 0, or from 1024 to"),
    (["up", "--data-root", "/no/such"], "--data-root: /no/such is no folder"),
    (["train", "--data", ".", "--steps", "1"], "--model: is missing"),
    (
        ["train", "--data", ".", "--steps", "1", "--plan", "p", "--tier", "1"],
        "--plan: is given together with options that make a plan",
    ),
    (
        ["train", "--data", ".", "--steps", "1", "--plan", "p", "--rank", "4"],
        "--plan: is given together with options that make a plan",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_LINES)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {message}")
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan"], ["plan", "--model", "m", "--tier", "0"], ["nothing"], ["runs", "show"],
        ["train", "--data", ".", "--steps", "-1", "--model", "m"],
        ["plan", "--model", "m", "--steps", "10000000000000000000000"],
        ["plan", "--model", "m", "--adapter-dtype", "float8"],
    ],
)  # fmt: skip
def test_usage_errors_exit_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_a_stack_trainer_commands_say_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "list", "--state-directory", str(tmp_path)]) == 3
    shown = capsys.readouterr().err
    assert str(tmp_path) in shown
    assert "`elite up`" in shown


def test_an_unreachable_trainer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trainer-address", "127.0.0.1:1", "runs", "list"]) == 3
    assert "trainer at 127.0.0.1:1: cannot be reached" in capsys.readouterr().err
