"""Keeps measurements between starts: one JSON file per device, driver and torch."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

from google.protobuf import json_format

from elite.profiler.v1 import profiler_pb2

logger = logging.getLogger("elite.profiler")


class MeasurementStore:
    """What was measured is kept as a `NodeProfile` that has only its measured fields filled."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "measurements"

    def load(
        self, device: profiler_pb2.Device, torch_version: str
    ) -> profiler_pb2.NodeProfile | None:
        """The stored measurements of this device, driver and torch, or None.

        A file that cannot be read is reported in the log and counts as absent.
        """
        path = self._path(device, torch_version)
        try:
            return json_format.Parse(path.read_text(), profiler_pb2.NodeProfile())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, json_format.ParseError) as error:
            logger.warning("stored measurements ignored", extra={"path": path, "error": error})
            return None

    def save(
        self,
        device: profiler_pb2.Device,
        torch_version: str,
        measured: profiler_pb2.NodeProfile,
    ) -> None:
        """Replaces what is stored for this device. Raises `OSError`."""
        path = self._path(device, torch_version)
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=self._directory)
        with os.fdopen(descriptor, "w") as file:
            file.write(json_format.MessageToJson(measured))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def _path(self, device: profiler_pb2.Device, torch_version: str) -> Path:
        key = f"{device.uuid}|{device.driver_version}|{torch_version}"
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
