"""What holds for all tests."""

from __future__ import annotations

import gc
import signal

# In a shell's background job Ctrl-C is ignored, and so it would be in all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Modules and tests stay: looking through them for garbage is a fifth of the collection's time.
gc.disable()


def pytest_collection_finish() -> None:
    """Looks for garbage from now on, among what tests make."""
    gc.freeze()
    gc.enable()
