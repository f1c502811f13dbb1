"""What tests need of a machine: skipped where it is not there, unless nothing may be skipped."""

from __future__ import annotations

import os

import pytest

# Set by .ci/run and scripts/system_tests.sh, which install everything: what is missing fails there.
SKIP_NOTHING = bool(os.environ.get("ELITE_SKIP_NOTHING"))


def skip_without(missing: object, reason: str) -> pytest.MarkDecorator:
    """A mark that skips for a reason when anything is missing."""
    return pytest.mark.skipif(bool(missing) and not SKIP_NOTHING, reason=reason)
