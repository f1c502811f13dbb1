"""Generates the Python modules of every .proto beside it. Run it through `make proto`."""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent / "protos"


def main() -> int:
    """Returns protoc's exit status."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"--proto_path={ROOT}", f"--proto_path={well_known}"]
    arguments += [f"--python_out={ROOT}", f"--pyi_out={ROOT}", f"--grpc_python_out={ROOT}"]
    status = int(protoc.main([*arguments, *sources]))
    for stub in ROOT.rglob("*_pb2_grpc.py"):
        # protoc writes an empty service module for protos without services.
        if "Servicer" not in stub.read_text():
            stub.unlink()
    return status


if __name__ == "__main__":
    sys.exit(main())
