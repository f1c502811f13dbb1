"""Runs a program that the kernel kills when its parent ends, however the parent ends.

Usage: launch.py PARENT_PID PROGRAM [ARGUMENT ...]

A program of its own, because the alternative, Python's `preexec_fn`, runs Python code in a fork
of a process with gRPC's threads in it. Needs the standard library only: it is run with -I -S.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Asks for SIGKILL at the parent's death and becomes the program."""
    parent, program = int(arguments[0]), arguments[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit("the parent ended before the program could start")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
