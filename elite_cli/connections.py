"""Where each service is: an address given, a running `elite up`, or this very process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from elite_cli.client import ServiceClient, connect
from elite_cli.endpoints import Endpoints, read_endpoints
from elite_cli.errors import CliError, ExitCode
from elite_cli.settings import PLANNER, PROFILER, TRAINER, CliSettings

# sun_path is 108 bytes, with its closing NUL.
LONGEST_SOCKET_PATH = 107

# Nothing but this process talks to its own servers, so they have nothing to wait for.
LOCAL_GRACE_SECONDS = 0.5


class Connections:
    """Clients of the three services, opened at first use and closed with the `with`."""

    def __init__(self, settings: CliSettings) -> None:
        self._settings = settings
        self._resources = ExitStack()

    def __enter__(self) -> Connections:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    @cached_property
    def profiler(self) -> ServiceClient:
        """The profiler; in-process when no address is known."""
        from elite.profiler.v1 import profiler_pb2_grpc

        address = self._known_address(PROFILER) or self._serve(PROFILER, self._profiler_service)
        return self._connect(PROFILER, address, profiler_pb2_grpc.ProfilerServiceStub)

    @cached_property
    def planner(self) -> ServiceClient:
        """The planner; in-process when no address is known."""
        from elite.planner.v1 import planner_pb2_grpc

        address = self._known_address(PLANNER) or self._serve(PLANNER, self._planner_service)
        return self._connect(PLANNER, address, planner_pb2_grpc.PlannerServiceStub)

    @cached_property
    def trainer(self) -> ServiceClient:
        """The trainer. Raises `CliError` when no address is known: it needs a stack."""
        from elite.trainer.v1 import trainer_pb2_grpc

        address = self._known_address(TRAINER)
        if not address:
            raise CliError(
                f"no trainer: no address is given and no `elite up` is running on "
                f"{self._settings.state_directory}",
                exit_code=ExitCode.UNAVAILABLE,
                hints=(
                    "start the services with `elite up` in another terminal, or name a trainer "
                    "with --trainer-address or ELITE_CLI_TRAINER_ADDRESS",
                ),
            )
        return self._connect(TRAINER, address, trainer_pb2_grpc.TrainerServiceStub)

    def _known_address(self, service: str) -> str:
        given = self._settings.address(service)
        if given or self._endpoints is None:
            return given
        return self._endpoints.addresses.get(service, "")

    @cached_property
    def _endpoints(self) -> Endpoints | None:
        return read_endpoints(self._settings.state_directory)

    def _connect(self, name: str, address: str, make_stub: Any) -> ServiceClient:
        client = connect(name, address, make_stub)
        self._resources.callback(client.channel.close)
        return client

    @cached_property
    def _socket_directory(self) -> Path:
        """A private folder (mode 0700) for the sockets, gone with the process."""
        folder = Path(tempfile.mkdtemp(prefix="elite-"))
        if len(str(folder / "profiler.sock")) > LONGEST_SOCKET_PATH:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix="elite-", dir="/tmp"))
        self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _serve(self, name: str, make: Callable[[], tuple[Any, Any]]) -> str:
        """Raises `CliError` for what keeps it from starting, such as a setting that is wrong."""
        from services.common.local import serve_locally

        try:
            address: str = self._resources.enter_context(serve_locally(*make()))
        except (OSError, ValueError) as error:
            raise CliError(f"the {name} cannot start in this process: {error}") from error
        return address

    def _profiler_service(self) -> tuple[Any, Any]:
        from services.profiler.servicer import profiler_service
        from services.profiler.settings import ProfilerSettings

        settings = ProfilerSettings(**self._local_settings(PROFILER))
        return profiler_service(settings), settings

    def _planner_service(self) -> tuple[Any, Any]:
        from services.planner.servicer import planner_service
        from services.planner.settings import PlannerSettings

        settings = PlannerSettings(**self._local_settings(PLANNER))
        return planner_service(settings), settings

    def _local_settings(self, name: str) -> dict[str, Any]:
        """What an in-process server sets itself; the rest is read as the process would read it.

        Measurements are kept where `elite up` on the same state directory keeps them.
        """
        settings: dict[str, Any] = {
            "address": f"unix:{self._socket_directory / name}.sock",
            "metrics_address": "",
            "shutdown_grace_seconds": LOCAL_GRACE_SECONDS,
        }
        if self._settings.state_directory_option is not None:
            settings["state_directory"] = self._settings.state_directory / name
        return settings
