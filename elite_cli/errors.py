"""What goes wrong at the command line: one exception, four exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `elite`; part of its contract with scripts."""

    OK = 0
    # The request was fine and the answer is bad: nothing fits, the run failed.
    FAILURE = 1
    BAD_INPUT = 2
    # A service could not be reached, or lost what it needs.
    UNAVAILABLE = 3
    # 128 + SIGINT, as shells have it.
    INTERRUPTED = 130


class CliError(Exception):
    """Ends the command: each of `lines` is shown as `error: ...`, then the hints as they are."""

    def __init__(
        self,
        *lines: str,
        exit_code: ExitCode = ExitCode.FAILURE,
        hints: tuple[str, ...] = (),
    ) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.exit_code = exit_code
        self.hints = hints


def bad_option(option: str, problem: str, fix: str) -> CliError:
    """The error for one bad command-line option: its name, the problem, the fix."""
    return CliError(f"{option}: {problem}: {fix}", exit_code=ExitCode.BAD_INPUT)
