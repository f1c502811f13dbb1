"""Becomes another program, which the kernel kills when the caller ends, however the caller ends.

Usage: launch.py PARENT_PID PROGRAM [ARGUMENT ...]

A program of its own, because the alternative, `preexec_fn`, runs Python code in a fork of a
process with other threads in it. Run with -I -S: it needs the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
