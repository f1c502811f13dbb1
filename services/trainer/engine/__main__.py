"""`python -m services.trainer.engine`: one run, told as events, ended with an exit status.

0: done. 1: failed; the last event says why. 75: stopped by a signal, to be resumed.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from services.common.engine_process import LIBRARY_ENVIRONMENT
from services.trainer.engine.events import STANDARD_OUTPUT, EventEmitter
from services.trainer.engine.failures import (
    EXIT_FAILURE,
    EXIT_STOPPED,
    EXIT_SUCCESS,
    StopRequested,
    describe,
)
from services.trainer.engine.specification import read_specification
from services.trainer.engine.stop_signal import StopSignal
from services.trainer.jobs.fence import Fence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, runs, and returns the exit status."""
    options = _parser().parse_args(arguments)
    events = EventEmitter(options.events_fd)
    stop = StopSignal()
    # Whoever finds the engine hanging asks where.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        stop.install()
        _run(options, events, stop)
    except StopRequested:
        return EXIT_STOPPED
    except BaseException as error:
        traceback.print_exc()
        _report(events, error)
        return EXIT_FAILURE
    return EXIT_SUCCESS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.engine", description=__doc__)
    add = parser.add_argument
    add("--plan", type=Path, required=True, help="JSON of a Plan or a PlanResponse")
    add("--spec", type=Path, help="JSON of a RunSpec; its plan is not read")
    add("--run-directory", type=Path, required=True, help="where checkpoints and adapter go")
    add("--fencing-token", type=int, default=0, help="refused where a higher one has been")
    add(
        "--told-steps", type=int, help="when resuming, events of saved steps after these come again"
    )
    add("--resume", action="store_true", help="go on from the newest good checkpoint")
    add("--events-fd", type=int, default=STANDARD_OUTPUT, help="descriptor the events go to")
    add("--data-cache", type=Path, help="token caches; default: RUN_DIRECTORY/../datasets")
    add("--data", default="", help="folder of source files; goes before the spec's")
    add("--steps", type=int, default=0, help="optimiser steps; goes before the spec's")
    add("--model-path", default="", help="folder of the model; goes before the spec's")
    return parser


def _run(options: argparse.Namespace, events: EventEmitter, stop: StopSignal) -> None:
    specification = read_specification(
        options.plan,
        options.spec,
        data_path=options.data,
        steps=options.steps,
        model_path=options.model_path,
    )
    for name, value in LIBRARY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Torch takes seconds to load: a bad plan should not have to wait for it. What is loaded stays,
    # and looking through it for garbage takes a third of the time.
    gc.disable()
    from services.trainer.engine.run import Run, execute

    gc.freeze()
    gc.enable()
    fence = Fence(options.run_directory.resolve(), options.fencing_token)
    cache_directory = options.data_cache or fence.folder.parent / "datasets"
    cache = cache_directory.resolve()
    run = Run(specification, fence, cache, events, stop, options.told_steps)
    execute(run, resume=options.resume)


def _report(events: EventEmitter, error: BaseException) -> None:
    try:
        events.emit(engine_failed=describe(error))
    except OSError as broken:  # nobody listens; the exit status still tells
        print(f"the failure could not be reported: {broken}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
