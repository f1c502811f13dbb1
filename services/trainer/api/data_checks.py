"""Checks the data of a run: there, allowed, readable, text, and long enough for one window."""

from __future__ import annotations

from pathlib import Path

from elite.trainer.v1 import trainer_pb2
from services.common.errors import invalid_field
from services.trainer.jobs.corpus import CorpusError, require_source_files
from services.trainer.jobs.roots import DATA_ROOTS, resolve_folder

_FIELD = "spec.data.path"


def check_data(spec: trainer_pb2.RunSpec, roots: tuple[Path, ...]) -> None:
    """Raises `ServiceError` naming `spec.data.path`, what is wrong with it, and the fix.

    No tokenizer here makes more tokens than bytes, so a corpus with fewer bytes than a window has
    tokens cannot fill one. Whether a longer one does is known when it has been tokenised. Blocks
    on the file system: call it from a thread.
    """
    data, plan = spec.data, spec.plan
    folder = resolve_folder(_FIELD, data.path, roots, DATA_ROOTS)
    window = plan.context_tokens + plan.target_tokens
    try:
        found_bytes = require_source_files(
            folder, data.include_globs, data.exclude_globs, enough_bytes=window
        )
    except CorpusError as error:
        raise invalid_field(_FIELD, error.problem, error.fix) from error
    if found_bytes < window:
        problem = (
            f"holds {found_bytes} bytes of text, and one window of tier {plan.tier} takes "
            f"{window} tokens ({plan.context_tokens} + {plan.target_tokens})"
        )
        raise invalid_field(_FIELD, problem, "give more source files, or plan for a lower tier")
