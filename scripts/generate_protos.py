"""Generates the Python modules of every proto, beside it. Run it through `make proto`.

With `--check` nothing is written: it fails when the committed modules are not what the protos
give (`make lint`).
"""

from __future__ import annotations

import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent / "protos"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def generate(target: Path) -> None:
    """Writes the modules of every proto below `target`; raises `SystemExit` when protoc fails."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"--proto_path={ROOT}", f"--proto_path={well_known}"]
    arguments += [f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}"]
    status = protoc.main([*arguments, *sources])
    if status:
        raise SystemExit(status)
    for stub in target.rglob("*_pb2_grpc.py"):
        if "Servicer" not in stub.read_text():  # protoc writes one for protos without services too
            stub.unlink()


def read_generated(directory: Path) -> dict[Path, str]:
    """The generated modules below `directory`, by relative path."""
    found = (path for pattern in GENERATED for path in directory.rglob(pattern))
    return {path.relative_to(directory): path.read_text() for path in found}


def stale_modules() -> list[str]:
    """Names of committed modules that differ from what the protos give."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = read_generated(Path(scratch)), read_generated(ROOT)
    names = fresh.keys() | committed.keys()
    return sorted(str(name) for name in names if fresh.get(name) != committed.get(name))


def main() -> int:
    """Returns the exit status."""
    if sys.argv[1:] != ["--check"]:
        generate(ROOT)
        return 0
    stale = stale_modules()
    if stale:
        print("generated code is stale, run `make proto`:", *stale, sep="\n  ", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
