"""Versions of what a plan depends on, read from package metadata: nothing is imported."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path

from elite.profiler.v1 import profiler_pb2

PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "deepspeed",
    "flash-attn", "liger-kernel", "triton", "celery", "redis", "grpcio",
)  # fmt: skip


def read_software() -> profiler_pb2.Software:
    """Installed versions; a package that is absent is not listed."""
    software = profiler_pb2.Software(
        python_version=platform.python_version(), torch_cuda_version=_torch_cuda_version()
    )
    for name in PACKAGES:
        version = package_version(name)
        if version:
            software.packages.add(name=name, version=version)
    return software


def package_version(name: str) -> str:
    """The installed version of a distribution, or an empty string."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _torch_cuda_version() -> str:
    """`torch.version.cuda` without importing torch; empty for a CPU build."""
    try:
        path = importlib.metadata.distribution("torch").locate_file("torch/version.py")
        text = Path(str(path)).read_text()
    except (importlib.metadata.PackageNotFoundError, OSError):
        return ""
    found = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found.group(1) if found else ""
