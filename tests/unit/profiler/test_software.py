"""Versions are read from package metadata, and torch is never imported for them."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from services.profiler.probes.software import package_version, read_software


class Installed:
    """A distribution of torch whose files lie in `folder`."""

    version = "2.13.0"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def locate_file(self, name: str) -> Path:
        return self._folder / name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ('cuda = "12.8"', "12.8"),
        ("cuda: Optional[str] = None", ""),
        ("hip: Optional[str] = '6.4'", ""),
    ],
)
def test_cuda_version_is_read_from_torchs_own_file(
    line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(f"__version__ = '2.13.0'\n{line}\n")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Installed(tmp_path))
    assert read_software().torch_cuda_version == expected


def test_absent_packages_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_version("no-such-package") == ""
    installed = {package.name: package.version for package in read_software().packages}
    assert installed["torch"] == importlib.metadata.version("torch")
    monkeypatch.setattr("services.profiler.probes.software.package_version", lambda _: "")
    assert not read_software().packages


def test_a_snapshot_imports_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from services.profiler.profiler import Profiler
from services.profiler.servicer import profiler_service
from services.profiler.settings import ProfilerSettings
settings = ProfilerSettings(state_directory=Path(sys.argv[1]))
profiler_service(settings)
assert Profiler(settings).snapshot().devices
print(sorted({"torch", "transformers", "peft", "bitsandbytes"} & set(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.strip() == "[]", answer.stderr
