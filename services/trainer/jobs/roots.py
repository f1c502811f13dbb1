"""Paths in requests: only folders inside the allowed roots, after every symlink is followed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from services.common.errors import ServiceError, invalid_field

# Variables that the roots are set by.
DATA_ROOTS, MODEL_ROOTS = "ELITE_TRAINER_DATA_ROOTS", "ELITE_TRAINER_MODEL_ROOTS"


def resolve_folder(field: str, text: str, roots: tuple[Path, ...], roots_variable: str) -> Path:
    """The real path of an existing, readable folder inside one of the roots.

    Raises `ServiceError` naming `field`. What lies outside the roots is not described, so that
    nobody can explore the trainer's disk.
    """
    path = Path(text)
    if "\0" in text or not path.is_absolute():
        raise invalid_field(
            field, f"is {text[:200]!r}", "an absolute path on the trainer's machine"
        )
    if not roots:
        problem = "no folder is allowed on this trainer"
        fix = f"set {roots_variable} for the trainer's API and its workers"
        raise invalid_field(field, problem, fix)
    allowed = [Path(os.path.realpath(root)) for root in roots]
    # Not strict: a missing path outside the roots must look like any other path outside them.
    if not _is_inside(Path(os.path.realpath(path)), allowed):
        places = ", ".join(str(root) for root in roots)
        raise invalid_field(field, f"{text} is outside the allowed folders", f"use one in {places}")
    return _existing_folder(field, path)


def _existing_folder(field: str, path: Path) -> Path:
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _unusable(field, path, error) from error
    if not real.is_dir():
        raise invalid_field(field, f"{path} is not a folder", "give the folder it is in")
    if not os.access(real, os.R_OK | os.X_OK):
        raise invalid_field(field, f"{path} cannot be read", "let the trainer's user read it")
    return real


def _unusable(field: str, path: Path, error: OSError | RuntimeError) -> ServiceError:
    if isinstance(error, RuntimeError) or error.errno == errno.ELOOP:
        return invalid_field(field, f"{path} is a loop of symlinks", "give the real folder")
    if error.errno in (errno.EACCES, errno.EPERM):
        return invalid_field(field, f"{path} cannot be read", "let the trainer's user read it")
    if error.errno == errno.ENAMETOOLONG:
        return invalid_field(field, "has a part that is too long for a file name", "shorten it")
    fix = "check the spelling; the path is on the trainer's machine"
    return invalid_field(field, f"{path} does not exist", fix)


def _is_inside(path: Path, roots: list[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)
