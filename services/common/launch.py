"""Starts a program that the kernel kills when its parent ends, however the parent ends.

`with_parent(command)` is the command line to start; run as a program (launch.py PARENT_PID PROGRAM
[ARGUMENT ...]) this file becomes the other program. The alternative, `preexec_fn`, runs Python code
in a fork of a process with other threads in it, which crashes where gRPC's threads are among them.
Started with -I -S: it needs the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def with_parent(command: Sequence[str]) -> list[str]:
    """The command line that starts `command` as a child that cannot outlive this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main(arguments: list[str]) -> None:
    """Asks for SIGKILL at the parent's death and becomes the program. Raises `OSError`."""
    parent, program = int(arguments[0]), arguments[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit("the parent ended before the program could start")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
