"""Looks once more whether a run may read what it names, before its engine does.

The API has looked when the run was submitted. Since then a symbolic link may lead elsewhere, or the
operator may have allowed less.
"""

from __future__ import annotations

from elite.trainer.v1 import trainer_pb2
from services.common.errors import ServiceError
from services.trainer.jobs.roots import DATA_ROOTS, MODEL_ROOTS, resolve_folder
from services.trainer.settings import TrainerSettings


def path_error(spec: trainer_pb2.RunSpec, settings: TrainerSettings) -> trainer_pb2.RunError | None:
    """The error of a run that may not read its data or its model; it names the field.

    Blocks on the file system: call it from a thread.
    """
    cause = trainer_pb2.FAILURE_CAUSE_BAD_DATA
    try:
        resolve_folder("spec.data.path", spec.data.path, settings.data_roots, DATA_ROOTS)
        cause = trainer_pb2.FAILURE_CAUSE_BAD_MODEL
        if spec.model_path:
            resolve_folder("spec.model_path", spec.model_path, settings.model_roots, MODEL_ROOTS)
    except ServiceError as error:
        return trainer_pb2.RunError(cause=cause, message=error.message)
    return None
