"""The local stack as one thing: up with a `with`, gone at its end."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from elite_cli.endpoints import (
    Endpoints,
    StackAlreadyRunningError,
    hold_stack_lock,
    remove_endpoints,
    write_endpoints,
)
from elite_cli.errors import CliError
from elite_cli.settings import PLANNER, PROFILER, TRAINER
from elite_cli.stack.definition import StackOptions, stack_processes
from elite_cli.stack.ports import address, choose_ports
from elite_cli.stack.process_group import POLL_SECONDS, ProcessGroup, Report
from elite_cli.stack.valkey import new_valkey_server


class LocalStack:
    """Everything `elite up` starts. Entering returns once all of it answers.

    Raises `CliError` when something does not start; what had started is stopped by then. Leaving
    stops all processes, the worker first.
    """

    endpoints: Endpoints

    def __init__(self, options: StackOptions, report: Report) -> None:
        self.options = options
        self.logs_directory = options.state_directory / "logs"
        self._resources = ExitStack()
        self._group = ProcessGroup(uuid.uuid4().hex, self.logs_directory, report)

    def __enter__(self) -> LocalStack:
        folder = self.options.state_directory
        with ExitStack() as resources:
            self._make_folders()
            resources.enter_context(_lock(folder))
            remove_endpoints(folder)  # left behind by a killed stack
            resources.enter_context(self._group)
            # Taken back before the processes stop: nobody new may come.
            resources.callback(remove_endpoints, folder)
            self.endpoints = self._start()
            write_endpoints(folder, self.endpoints)
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    def living_processes(self) -> list[int]:
        """Ids of all processes of this stack that are alive, whoever started them."""
        return self._group.living()

    def check(self) -> None:
        """Raises `CliError`, with the tail of its log, when a process has ended."""
        self._group.check()

    def wait(self) -> None:
        """Never returns; raises `CliError` when a process ends that should not have."""
        while True:
            self.check()
            time.sleep(POLL_SECONDS)

    def _make_folders(self) -> None:
        try:
            for folder in (self.options.state_directory, self.logs_directory):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CliError(
                f"--state-directory: cannot make {error.filename}: {error.strerror}: "
                "give a folder this user can write"
            ) from error

    def _start(self) -> Endpoints:
        ports = choose_ports(self.options.port_base)
        valkey = new_valkey_server(self.options.state_directory / "valkey", ports["valkey"])
        valkey.write_config()
        broker, *others = stack_processes(self.options, ports, valkey)
        # The broker first, since two others need it; those all at once.
        self._group.start([broker])
        self._group.start(others)
        services = (PROFILER, PLANNER, TRAINER)
        return Endpoints(
            os.getpid(),
            self._group.stack_id,
            {name: address(ports, name) for name in services},
            {name: address(ports, f"{name} metrics") for name in (*services, "worker")},
        )


@contextmanager
def _lock(state_directory: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(hold_stack_lock(state_directory))
        except StackAlreadyRunningError:
            raise CliError(
                f"--state-directory: an `elite up` is already running on {state_directory}: "
                "use it, stop it, or give another folder with --state-directory"
            ) from None
        yield
