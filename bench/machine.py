"""What a figure was measured on: written into every results file."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime

from services.profiler.probes.host import cpu_name


def describe_machine() -> dict[str, object]:
    """Processor, cores, versions, date."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "date": datetime.now(UTC).date().isoformat(),
    }
