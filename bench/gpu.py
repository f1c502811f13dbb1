"""One NVIDIA GPU, measured against the plans: `python -m bench.gpu`.

On the machine: a driver, Python 3.11 or newer, and torch (a CUDA build), transformers, peft,
bitsandbytes, grpcio, googleapis-common-protos, numpy and pyyaml as in constraints.txt, protobuf no
older than the generated code in protos/. Nothing of this repository needs installing: run the one
command in its root. No model is downloaded; weights are random.

Every section runs in a child process with a time limit, so that one that runs out of memory or
hangs costs itself only. The results file is written anew after each. Sections are ordered by what
they are worth; when `--budget-seconds` are nearly spent, the rest are skipped and named.

    python -m bench.gpu                                       # all of it
    python -m bench.gpu --only rates,row-8 --resume           # measure these again
    python -m bench.gpu --budget-seconds 500 --resume         # what the file does not have yet
    python -m bench.gpu --fast --output fast.json             # tiny, also without a GPU

environment  card, driver, libraries, CUDA context
rates        matrix products, copies to and from the host, attention by kernel
gradients    stock and streaming in bf16, each against stock in fp32
row-TIER     an optimiser step of a row of the ladder, in no more than the row's VRAM
speed-TOKENS streaming beside stock transformers, PEFT and gradient checkpointing
overlap      which share of the copies of a step runs beside kernels
kernels      tier 8 by attention kernel
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_document import (
    Document,
    has_section,
    put_failure,
    put_result,
    put_skip,
    read_document,
    write_document,
)
from bench.gpu_sections import fragment_file, known, run_sections
from bench.gpu_settings import MODEL, NO_CUDA, Settings
from bench.gpu_summary import show
from services.common.engine_process import LIBRARY_ENVIRONMENT

RESULTS = Path(__file__).parent / "results" / "gpu.json"
_ROOT = Path(__file__).parents[1]
_SHOWN = RESULTS.relative_to(_ROOT)
_BUDGET_SECONDS = 1500.0
_ROW_SECONDS = 60.0
_GIBIBYTE = 2**30
_EXIT_USAGE = 2
_ERROR_LINES = 25
# Of its time limit, what a section plans to use.
_USED_SHARE = 0.7
_FULL_DEPTH_ROW_SECONDS, _ROW_LIMIT_SECONDS, _SPEED_LIMIT_SECONDS = 900.0, 240.0, 150.0


@dataclass(frozen=True, slots=True)
class Section:
    """limit_seconds: when it is ended. least_seconds: with less of the budget it is not begun."""

    name: str
    limit_seconds: float
    least_seconds: float = 30.0


# The most valuable first: what every later figure rests on, one of each kind, then the rest.
SECTIONS = (
    Section("environment", 90.0, 0.0),
    Section("rates", 180.0),
    Section("gradients", 240.0),
    Section("overlap", 120.0),
    Section("kernels", 240.0, 60.0),
    Section("row-8", _FULL_DEPTH_ROW_SECONDS, 90.0),
    *(Section(f"row-{tier}", _ROW_LIMIT_SECONDS) for tier in (1, 4, 6)),
    *(Section(f"speed-{tokens}", _SPEED_LIMIT_SECONDS) for tokens in (4096, 16384, 65536)),
    *(Section(f"row-{tier}", _ROW_LIMIT_SECONDS, 60.0) for tier in (9, 11, 10)),
    *(Section(f"row-{tier}", _ROW_LIMIT_SECONDS) for tier in (2, 3, 5, 7)),
    *(Section(f"speed-{tokens}", _SPEED_LIMIT_SECONDS) for tokens in (8192, 32768)),
)
_FAST_NAMES = (
    "environment", "rates", "gradients", "overlap", "kernels", "row-8", "row-10", "speed-64",
)  # fmt: skip
_FAST_LIMIT_SECONDS = 60.0
FAST_SECTIONS = tuple(Section(name, _FAST_LIMIT_SECONDS, 0.0) for name in _FAST_NAMES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes and prints; the exit status is 1 when a section failed, 2 without a GPU."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.fast and options.output is None:
        parser.error("--fast needs --output: results are of the real model on a GPU")
    options.output = options.output or RESULTS
    if options.sections_of_child:
        _be_child(options)
        return 0
    if not options.fast and not has_cuda():
        fix = "--fast measures a tiny model on the CPU, to see that it works"
        print(f"bench.gpu: {NO_CUDA}: {fix}", file=sys.stderr)
        return _EXIT_USAGE
    document = read_document(options.output) if options.resume else {}
    document["fast"] = options.fast
    run(_batches(options, document), document, options)
    show(document)
    return 1 if document.get("failed") else 0


def has_cuda() -> bool:
    """Whether torch sees a CUDA device. It makes no context."""
    import torch

    return bool(torch.cuda.is_available())


def run(
    batches: Sequence[Sequence[Section]], document: Document, options: argparse.Namespace
) -> None:
    """Runs batches of sections, a child process each, and writes the file after each."""
    started = time.monotonic()
    write_document(document, options.output)
    for batch in batches:
        left_seconds = options.budget_seconds - (time.monotonic() - started)
        if left_seconds < max(section.least_seconds for section in batch):
            for section in batch:
                reason = f"{max(0.0, left_seconds):.0f} of {options.budget_seconds:.0f} s are left"
                put_skip(document, section.name, reason)
        else:
            limit_seconds = min(sum(section.limit_seconds for section in batch), left_seconds)
            _run_batch([section.name for section in batch], document, options, limit_seconds)
        write_document(document, options.output)


def _run_batch(
    names: list[str], document: Document, options: argparse.Namespace, limit_seconds: float
) -> None:
    """One child; what it leaves goes into the document."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        folder = Path(scratch)
        command = child_command(names, folder, options, limit_seconds)
        print(f"{', '.join(names)} ...", flush=True)
        outcome = _wait(command, folder / "stderr", limit_seconds)
        is_whole = True
        for name in names:
            found = read_document(fragment_file(folder, name))
            if "result" in found:
                put_result(document, name, found["result"], found["seconds"])
            else:
                error, is_whole = found.get("error", outcome), False
                put_failure(document, name, error, found.get("partial"))
                print(f"{name} failed: {error}", flush=True)
        if not is_whole:
            lines = _lines(folder / "stderr")[-_ERROR_LINES:]
            print("\n".join(lines), file=sys.stderr, flush=True)


def child_command(
    names: list[str], folder: Path, options: argparse.Namespace, limit_seconds: float
) -> list[str]:
    """The command line of a child that runs sections and leaves their outcome in a folder."""
    command = [sys.executable, "-m", "bench.gpu", "--section", ",".join(names)]
    command += ["--fragments", str(folder), "--output", str(options.output)]
    command += ["--model", options.model, "--attention-kernel", options.attention_kernel]
    command += ["--host-memory-gibibytes", str(options.host_memory_gibibytes)]
    command += ["--row-seconds", str(options.row_seconds)]
    command += ["--allowed-seconds", str(_USED_SHARE * limit_seconds)]
    return command + (["--fast"] if options.fast else [])


def _wait(command: list[str], error_file: Path, limit_seconds: float) -> str:
    """Runs a child to its end or its limit; what to say of sections it left nothing of."""
    with error_file.open("w") as errors:
        try:
            ended = subprocess.run(
                command, stderr=errors, env=_environment(), cwd=_ROOT, timeout=limit_seconds
            )
            status = ended.returncode
        except subprocess.TimeoutExpired:
            return f"ended at its limit of {limit_seconds:.0f} s"
    lines = _lines(error_file)
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"{how}: {lines[-1].strip()}" if lines else how


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _environment() -> dict[str, str]:
    """As engine processes have it; the generated protobuf code is found without installing."""
    paths = [str(_ROOT), str(_ROOT / "protos"), os.environ.get("PYTHONPATH", "")]
    found = os.pathsep.join(path for path in paths if path)
    return {**LIBRARY_ENVIRONMENT, **os.environ, "PYTHONPATH": found}


def _be_child(options: argparse.Namespace) -> None:
    settings = Settings(
        fast=options.fast,
        model=options.model,
        attention_kernel=options.attention_kernel,
        host_memory_bytes=int(options.host_memory_gibibytes * _GIBIBYTE),
        row_seconds=options.row_seconds,
        allowed_seconds=options.allowed_seconds,
    )
    so_far = read_document(options.output)
    run_sections(options.sections_of_child, settings, so_far, options.fragments)


def _batches(options: argparse.Namespace, document: Document) -> list[list[Section]]:
    """What is to be measured. Tiny sections share a process: loading the libraries takes longer."""
    sections = FAST_SECTIONS if options.fast else SECTIONS
    named = {section.name: section for section in sections}
    if options.only:
        limit = _FAST_LIMIT_SECONDS if options.fast else _ROW_LIMIT_SECONDS
        wanted = [named.get(name) or Section(name, limit) for name in options.only]
    else:
        wanted = [section for section in sections if not has_section(document, section.name)]
    return [wanted] if options.fast and wanted else [[section] for section in wanted]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--only", type=_names, default=[], help="sections by name, with commas between")
    add("--resume", action="store_true", help="keep what the output file has")
    add("--budget-seconds", type=float, default=_BUDGET_SECONDS, help="for all sections together")
    add("--row-seconds", type=float, default=_ROW_SECONDS, help="for a step of reduced depth")
    add("--model", default=MODEL, help=f"of the catalogue; default {MODEL}")
    add("--attention-kernel", default="", help="for all plans; default: the planner's choice")
    add(
        "--host-memory-gibibytes", type=float, default=0.0,
        help="that plans may use; default: what is available",
    )  # fmt: skip
    add("--fast", action="store_true", help="a tiny model and short windows, also on a CPU")
    add("--output", type=lambda text: Path(text).resolve(), help=f"default {_SHOWN}")
    # Of a child.
    add("--section", dest="sections_of_child", type=_names, default=[], help=argparse.SUPPRESS)
    add("--fragments", type=Path, help=argparse.SUPPRESS)
    add("--allowed-seconds", type=float, default=_BUDGET_SECONDS, help=argparse.SUPPRESS)
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if not known(name)]
    if unknown:
        raise argparse.ArgumentTypeError(f"no section is called {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
