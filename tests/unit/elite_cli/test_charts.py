"""Charts: written as a whole, with the figures of the answer in them, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from elite.planner.v1 import planner_pb2 as pb
from elite_cli.charts.comparison import comparison_figure
from elite_cli.charts.files import check_path, save
from elite_cli.charts.plan import plan_figure
from elite_cli.errors import CliError, ExitCode
from tests.support import plan_responses as made

PNG = b"\x89PNG\r\n\x1a\n"


def texts(figure: Figure) -> str:
    """Every text of a figure; drawing it fills the labels in."""
    figure.draw_without_rendering()
    found = [text for axes in figure.axes for text in axes.texts]
    labels = [label for axes in figure.axes for label in axes.get_yticklabels()]
    return "\n".join(text.get_text() for text in (*found, *labels))


def test_a_plan_has_tiers_budgets_and_lines() -> None:
    shown = texts(plan_figure(made.plan_response(schedule=True)))
    for expected in (
        "tier 11: 4,194,304", "budget 20.0 GiB", "81.9 GiB", "4 d 8 h", "14.3 of 20.0 GiB",
        "36.0 of 50.0 GiB", "7.50 GiB", "A step takes 1 h 30 min (1 h 15 min to 2 h)",
        "210 steps in 12 d 13 h",
    ):  # fmt: skip
        assert expected in shown, expected


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    response = made.plan_response()
    left, right = plan_figure(response).axes
    lengths = [bar.get_width() for bar in left.patches]
    assert lengths == [verdict.gpu_bytes for verdict in response.tiers]
    lines = response.chosen.gpu_memory.lines
    shares = [bar.get_width() for bar in right.patches[: len(lines)]]
    budget = response.budget.gpu_bytes
    assert shares == pytest.approx([line.bytes / budget for line in lines])


@pytest.mark.parametrize("one_pool", [False, True])
@pytest.mark.parametrize("highest", [0, 1, 11])
def test_every_plan_can_be_drawn(one_pool: bool, highest: int) -> None:
    response = made.plan_response(highest=highest, one_pool=one_pool)
    response.budget.disk_bytes = 0
    shown = texts(plan_figure(response))
    assert ("Nothing fits." in shown) is (highest == 0)


def test_a_long_ladder_is_cut_around_the_chosen_tier() -> None:
    response = made.plan_response()
    response.tiers.extend(made.verdict(8, fits=False) for _ in range(100))
    for number, verdict in enumerate(response.tiers, start=1):
        verdict.tier = number
    response.chosen.tier = 60
    shown = texts(plan_figure(response)).splitlines()
    tiers = [line for line in shown if line.startswith("tier ")]
    assert len(tiers) == 40
    assert tiers[0].startswith("tier 40:")


@pytest.mark.parametrize("fitting", [0, 2, 4])
def test_a_comparison(fitting: int) -> None:
    response = made.what_if_response(fitting=fitting)
    shown = texts(comparison_figure(response))
    assert shown.count("(tier ") == fitting
    assert shown.count("lacks 27.0 GiB host memory") == 4 - fitting
    assert "rtx-4090" in shown


@pytest.mark.parametrize(("suffix", "start"), [(".png", PNG), (".SVG", b"<?xml")])
def test_the_suffix_is_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"plan{suffix}"
    check_path(path)
    save(plan_figure(made.plan_response()), path)
    first = path.read_bytes()
    assert first.startswith(start)
    save(plan_figure(made.plan_response()), path)
    assert path.read_bytes() == first, "the same answer gives the same bytes"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["plan.pdf", "plan", "no/such/plan.png", "folder.svg"])
def test_a_bad_path_names_option_and_fix(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(CliError) as raised:
        check_path(tmp_path / name)
    (line,) = raised.value.lines
    assert raised.value.exit_code == ExitCode.BAD_INPUT
    assert line.startswith("--chart: ")
    if name.startswith("plan"):
        assert line.endswith("give a file name that ends in .svg or .png")


def test_a_chart_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    path.mkdir()  # made between the check and the writing
    with pytest.raises(CliError, match="--chart: cannot write"):
        save(comparison_figure(made.what_if_response()), path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_with_nothing_in_it_can_be_drawn() -> None:
    empty = pb.PlanResponse(tiers=[pb.TierVerdict(tier=1)])
    assert "Nothing fits." in texts(plan_figure(empty))
