"""The documentation agrees with the code: generated pages, links, commands, variables, tests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elite.trainer.v1 import trainer_pb2
from elite_cli.main import global_options_first
from scripts import generate_reference
from scripts.reference_texts import CAUSES, CLIENT_VARIABLES, REASONS
from services.common.errors import ErrorReason
from services.common.transport import ClientTransport

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_VARIABLE = re.compile(r"\bELITE_[A-Z][A-Z_]*[A-Z]\b(?!_?\*)")
# What follows `elite` up to the end of the command.
_COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?elite ([^#;|>]*)")
_TEST = re.compile(r"`(tests/[\w/]+\.py)`,? `(test_\w+)`")


@pytest.fixture(scope="module")
def fresh() -> dict[str, str]:
    return generate_reference.pages()


@pytest.fixture(scope="module")
def command_line() -> Any:
    return generate_reference.command_line()


@pytest.mark.parametrize(
    "name", ["cli.md", "configuration.md", "errors.md", "metrics.md", "protos.md"]
)
def test_generated_pages_are_fresh(fresh: dict[str, str], name: str) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == fresh[name], "run `python scripts/generate_reference.py`"


def test_words_are_there_for_everything_and_for_nothing_else() -> None:
    assert REASONS.keys() == {reason.name for reason in ErrorReason}
    causes = {name.removeprefix("FAILURE_CAUSE_") for name in trainer_pb2.FailureCause.keys()[1:]}
    assert causes == CAUSES.keys()
    assert {name.lower() for name in CLIENT_VARIABLES} == set(ClientTransport.__slots__)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    wrong = [link for link in _LINK.findall(text) if not _leads_somewhere(page, link)]
    assert not wrong


def _leads_somewhere(page: Path, link: str) -> bool:
    if re.match(r"[a-z]+:", link):
        return True
    place, _, anchor = link.partition("#")
    target = (page.parent / place).resolve() if place else page
    if not target.exists():
        return False
    return not anchor or target.suffix != ".md" or anchor in _anchors(target)


def _anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {_anchor(heading) for heading in _HEADING.findall(text)}


def _anchor(heading: str) -> str:
    plain = re.sub(r"[^\w\- ]", "", heading.lower())
    return plain.strip().replace(" ", "-")


def _command_lines(text: str) -> Iterator[str]:
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(";"):
                found = _COMMAND.match(part.strip())
                if found and not found.group(1).strip().startswith("("):  # a drawing
                    yield found.group(1).strip()


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(command_line: Any, name: str) -> None:
    lines = list(_command_lines((ROOT / name).read_text(encoding="utf-8")))
    problems = {line: problem for line in lines if (problem := _problem(command_line, line))}
    assert not problems


def _problem(top: Any, line: str) -> str:
    """What the command line does not know of `line`; empty when it knows it all."""
    words = [word for word in shlex.split(line) if word not in ("...", "[OPTIONS]")]
    words = global_options_first(words)
    command, known = top, _options(top)
    for word in words:
        children = getattr(command, "commands", {})
        if word.startswith("-"):
            if word.partition("=")[0] not in known | {"-h", "--help"}:
                return f"no option {word}"
        elif word in children:
            command = children[word]
            known = known | _options(command)
        elif children and words[0] == word:
            return f"no command {word}"
    return ""


def _options(command: Any) -> set[str]:
    return {name for found in command.params for name in [*found.opts, *found.secondary_opts]}


def test_a_wrong_command_is_found(command_line: Any) -> None:
    assert _problem(command_line, "plan --modell x") == "no option --modell"
    assert _problem(command_line, "plam --model x") == "no command plam"
    assert not _problem(command_line, "runs resume RUN_ID --watch --verbose")


@pytest.mark.parametrize("name", NAMES)
def test_variables_exist(fresh: dict[str, str], name: str) -> None:
    known = set(_VARIABLE.findall(fresh["configuration.md"]))
    used = set(_VARIABLE.findall((ROOT / name).read_text(encoding="utf-8")))
    assert not used - known


def test_tests_that_show_a_defence_exist() -> None:
    found = _TEST.findall((ROOT / "docs" / "security.md").read_text(encoding="utf-8"))
    assert len(found) > 15
    wrong = [(path, test) for path, test in found if not _has_test(path, test)]
    assert not wrong


def _has_test(path: str, test: str) -> bool:
    file = ROOT / path
    return file.is_file() and f"def {test}(" in file.read_text(encoding="utf-8")
