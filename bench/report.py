"""docs/benchmarks.md and its pictures, from bench/results: `python -m bench.report`.

Every figure of the page is read from a results file or computed from one; where there is no file
the page says so. `--check` writes nothing and exits with status 1 where the page is stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import report_chaos, report_gpu, report_load, report_measurements, report_predictions
from bench.report_text import NOT_MEASURED, Body, Document, listed, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGE = _ROOT / "docs" / "benchmarks.md"
_LIBRARIES = (("python", "Python"), ("torch", "torch"), ("transformers", "transformers"))
_REGENERATE = "python -m bench.report"


@dataclass(frozen=True, slots=True)
class Section:
    """One results file on the page.

    name: of the file, of the command and, where it has one, of the picture. drawn: what the picture
    shows, in words; empty without one. optional: left out where there is no file. options: of the
    command, where another section is of the same one.
    """

    name: str
    title: str
    read: Callable[[Document], Body]
    drawn: str = ""
    needs_gpu: bool = False
    optional: bool = False
    options: str = ""

    @property
    def command(self) -> str:
        """What measures it."""
        module, _, _ = self.name.partition("-")
        return f"python -m bench.{module} {self.options}".rstrip()


SECTIONS = (
    Section(
        "memory", "Memory: predicted and measured", report_predictions.memory,
        "Error of every case's predicted device memory, by set",
    ),
    Section(
        "time", "Time: predicted and measured", report_predictions.time,
        "Predicted against measured seconds of a step, with the diagonal",
    ),
    Section(
        "time-avx512", "Time: predicted and measured, on a CPU with AVX-512 and AMX",
        report_predictions.time, optional=True,
        options="--output bench/results/time-avx512.json",
    ),
    Section("planner", "Latency of the planner", report_measurements.planner),
    Section(
        "speed", "Streaming against stock training", report_measurements.speed,
        "Seconds and peak memory of a step by tokens, for every executor",
    ),
    Section(
        "speed-avx512", "Streaming against stock training, on a CPU with AVX-512",
        report_measurements.speed, optional=True,
        options="--model llama-8x256 --output bench/results/speed-avx512.json",
    ),
    Section("codecs", "Codecs of layer inputs", report_measurements.codecs),
    Section(
        "ladder", "The ladder", report_predictions.ladder,
        "Device memory of every tier as bars, the video memory of its card as marks",
    ),
    Section("choices", "The planner's choice", report_predictions.choices, options="--rounds 8"),
    Section(
        "profile", "Phases of a step", report_measurements.profile,
        "Seconds of a step by phase, stacked by kind of work", optional=True,
    ),
    Section(
        "waiting", "How long threads wait awake", report_measurements.waiting, optional=True
    ),
    Section(
        "pieces", "Attention's backward in pieces", report_measurements.pieces, optional=True
    ),
    Section("chaos", "What was broken, and what was lost", report_chaos.chaos),
    Section("load", "Many clients at once", report_load.load),
    Section("gpu", "GPU", report_gpu.gpu, needs_gpu=True),
)  # fmt: skip


def load_results(folder: Path) -> dict[str, Document]:
    """The files there are, by section. Raises `ValueError` for one that is not a JSON object."""
    found: dict[str, Document] = {}
    for section in SECTIONS:
        path = folder / f"{section.name}.json"
        if path.exists():
            found[section.name] = _document(path)
    return found


def _document(path: Path) -> Document:
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return document


def page(results: Mapping[str, Document]) -> str:
    """The page as Markdown."""
    blocks = [*_opening(results)]
    for section in SECTIONS:
        if section.name in results:
            blocks += _measured(section, results[section.name])
        elif not section.optional:
            blocks += [f"## {section.title}", _missing(section)]
    return "\n\n".join(blocks) + "\n"


def _opening(results: Mapping[str, Document]) -> Iterator[str]:
    yield f"<!-- Written by `{_REGENERATE}`: change that or the results, not this page. -->"
    yield "# Benchmarks"
    yield (
        "What was measured, beside what was predicted. Every figure here is read from a file in "
        "[`bench/results/`](../bench/results) or computed from one. What no file holds is said to "
        f"be {NOT_MEASURED}."
    )
    yield _machines(results)
    yield (
        "To measure again: run the command of a section on a quiet machine, then "
        f"`{_REGENERATE}`, which writes this page and its pictures."
    )
    yield table(("section", "command", "measured"), [
        (f"[{section.title}](#{_anchor(section.title)})", f"`{section.command}`",
         _date(section, results))
        for section in SECTIONS
        if section.name in results or not section.optional
    ])  # fmt: skip
    yield (
        "An error is predicted over measured, less one: below zero, the prediction was too low. "
        "Times are medians. GiB are 2^30 bytes, GB are 10^9."
    )


def _anchor(title: str) -> str:
    """The anchor that renderers of Markdown give a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -")
    return kept.replace(" ", "-")


def _date(section: Section, results: Mapping[str, Document]) -> str:
    if section.name not in results:
        return NOT_MEASURED
    return str(_machine(results[section.name]).get("date", "date unknown"))


def _machine(document: Document) -> Mapping[str, object]:
    described = document.get("machine")
    return described if isinstance(described, Mapping) else {}


def _machines(results: Mapping[str, Document]) -> str:
    """Every machine once, with the sections that were measured on it."""
    titles: dict[str, list[str]] = {}
    for section in SECTIONS:
        if section.name in results:
            words = _machine_words(_machine(results[section.name]))
            titles.setdefault(words, []).append(section.title)
    if len(titles) == 1:
        return f"The machine: {next(iter(titles))}."
    lines = [f"- {listed(names)}: {words}." for words, names in titles.items()]
    return (
        "\n".join(["The machines:", "", *lines]) if lines else f"Nothing is there: {NOT_MEASURED}."
    )


def _machine_words(machine: Mapping[str, object]) -> str:
    parts = [str(machine[name]) for name in ("gpu", "cpu") if machine.get(name)]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    parts += [
        f"{words} {machine[name]}" for name, words in _LIBRARIES if machine.get(name)
    ]  # fmt: skip
    return ", ".join(parts) or "not named in the file"


def _missing(section: Section) -> str:
    reason = "no GPU was at hand; " if section.needs_gpu else ""
    return f"{NOT_MEASURED.capitalize()}: {reason}`{section.command}` measures it."


def _measured(section: Section, document: Document) -> Iterator[str]:
    body = section.read(document)
    yield f"## {section.title}"
    yield body.finding
    if section.drawn and _figure(section.name, document) is not None:
        yield f"![{section.drawn}](benchmarks/{section.name}.svg)"
    yield from body.blocks
    if body.limits:
        yield "Honest limits:"
        yield "\n".join(f"- {limit}" for limit in body.limits)
    yield f"Figures: [`{section.name}.json`](../bench/results/{section.name}.json)."


def _figure(name: str, document: Document) -> Figure | None:
    from bench import charts  # imports matplotlib

    drawings: Mapping[str, Callable[[Document], Figure | None]] = {
        "memory": charts.memory, "time": charts.time, "speed": charts.speed,
        "ladder": charts.ladder, "profile": charts.profile,
    }  # fmt: skip
    return drawings[name](document)


def pictures(results: Mapping[str, Document]) -> dict[str, Figure]:
    """The figures of the page by the name of their file, without its suffix."""
    drawn = {
        section.name: _figure(section.name, results[section.name])
        for section in SECTIONS
        if section.drawn and section.name in results
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def picture_path(page_path: Path, name: str) -> Path:
    """Where the page expects a picture: in the folder beside it that has its name."""
    return page_path.parent / "benchmarks" / f"{name}.svg"


def write(results: Mapping[str, Document], page_path: Path) -> None:
    """Writes the page and its pictures; the same results give the same bytes."""
    from elite_cli.charts.files import save

    for name, figure in pictures(results).items():
        path = picture_path(page_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(figure, path)
    page_path.parent.mkdir(parents=True, exist_ok=True)
    page_path.write_text(page(results))


def stale(results: Mapping[str, Document], page_path: Path) -> Iterator[str]:
    """What is not as the results have it, a line each; pictures only have to be there."""
    if not page_path.exists():
        yield f"{page_path.name} is missing: run {_REGENERATE}"
    elif page_path.read_text() != page(results):
        yield f"{page_path.name} is not what bench/results gives: run {_REGENERATE}"
    for name in pictures(results):
        path = picture_path(page_path, name)
        if not path.exists():
            yield f"{path.name} is missing: run {_REGENERATE}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes or checks; exits with status 1 and a line for everything that is stale."""
    parser = argparse.ArgumentParser(description="docs/benchmarks.md from bench/results.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page; pictures go beside it")
    options = parser.parse_args(arguments)
    try:
        results = load_results(options.results)
    except ValueError as error:
        sys.exit(str(error))
    if not options.check:
        write(results, options.output)
        return
    lines = list(stale(results, options.output))
    if lines:
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
