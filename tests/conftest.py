"""What holds for all tests."""

from __future__ import annotations

import signal

# In a shell's background job Ctrl-C is ignored, and so it would be in all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
