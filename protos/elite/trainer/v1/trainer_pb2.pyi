import datetime

from elite.access.v1 import access_pb2 as _access_pb2
from elite.planner.v1 import planner_pb2 as _planner_pb2
from elite.validation.v1 import validation_pb2 as _validation_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_PENDING: _ClassVar[RunState]
    RUN_STATE_PLANNED: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_RESUMING: _ClassVar[RunState]
    RUN_STATE_SUCCEEDED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]
    RUN_STATE_CANCELLED: _ClassVar[RunState]
    RUN_STATE_PAUSED: _ClassVar[RunState]

class FailureCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_CAUSE_UNSPECIFIED: _ClassVar[FailureCause]
    FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY: _ClassVar[FailureCause]
    FAILURE_CAUSE_HOST_OUT_OF_MEMORY: _ClassVar[FailureCause]
    FAILURE_CAUSE_DISK_FULL: _ClassVar[FailureCause]
    FAILURE_CAUSE_BAD_DATA: _ClassVar[FailureCause]
    FAILURE_CAUSE_BAD_MODEL: _ClassVar[FailureCause]
    FAILURE_CAUSE_KILLED: _ClassVar[FailureCause]
    FAILURE_CAUSE_INTERNAL: _ClassVar[FailureCause]
    FAILURE_CAUSE_DIVERGED: _ClassVar[FailureCause]
    FAILURE_CAUSE_DISK_CORRUPT: _ClassVar[FailureCause]
    FAILURE_CAUSE_SUPERSEDED: _ClassVar[FailureCause]
    FAILURE_CAUSE_STALLED: _ClassVar[FailureCause]
    FAILURE_CAUSE_DEADLINE_EXCEEDED: _ClassVar[FailureCause]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_PENDING: RunState
RUN_STATE_PLANNED: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_RESUMING: RunState
RUN_STATE_SUCCEEDED: RunState
RUN_STATE_FAILED: RunState
RUN_STATE_CANCELLED: RunState
RUN_STATE_PAUSED: RunState
FAILURE_CAUSE_UNSPECIFIED: FailureCause
FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY: FailureCause
FAILURE_CAUSE_HOST_OUT_OF_MEMORY: FailureCause
FAILURE_CAUSE_DISK_FULL: FailureCause
FAILURE_CAUSE_BAD_DATA: FailureCause
FAILURE_CAUSE_BAD_MODEL: FailureCause
FAILURE_CAUSE_KILLED: FailureCause
FAILURE_CAUSE_INTERNAL: FailureCause
FAILURE_CAUSE_DIVERGED: FailureCause
FAILURE_CAUSE_DISK_CORRUPT: FailureCause
FAILURE_CAUSE_SUPERSEDED: FailureCause
FAILURE_CAUSE_STALLED: FailureCause
FAILURE_CAUSE_DEADLINE_EXCEEDED: FailureCause

class CreateRunRequest(_message.Message):
    __slots__ = ("request_id", "spec")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: RunSpec
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[RunSpec, _Mapping]] = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[RunState]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[RunState, str]]] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run_id", "cursor")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    cursor: str
    def __init__(self, run_id: _Optional[str] = ..., cursor: _Optional[str] = ...) -> None: ...

class WatchRunResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: RunEvent
    def __init__(self, event: _Optional[_Union[RunEvent, _Mapping]] = ...) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class CancelRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class PauseRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class PauseRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ResumeRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ResumeRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class RunSpec(_message.Message):
    __slots__ = ("display_name", "plan", "model_path", "data", "training", "planned_by", "priority", "max_run_seconds")
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    PLANNED_BY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    display_name: str
    plan: _planner_pb2.Plan
    model_path: str
    data: DataSource
    training: TrainingSettings
    planned_by: _planner_pb2.PlanRequest
    priority: int
    max_run_seconds: int
    def __init__(self, display_name: _Optional[str] = ..., plan: _Optional[_Union[_planner_pb2.Plan, _Mapping]] = ..., model_path: _Optional[str] = ..., data: _Optional[_Union[DataSource, _Mapping]] = ..., training: _Optional[_Union[TrainingSettings, _Mapping]] = ..., planned_by: _Optional[_Union[_planner_pb2.PlanRequest, _Mapping]] = ..., priority: _Optional[int] = ..., max_run_seconds: _Optional[int] = ...) -> None: ...

class DataSource(_message.Message):
    __slots__ = ("path", "include_globs", "exclude_globs", "held_out_fraction")
    PATH_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_GLOBS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_GLOBS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FRACTION_FIELD_NUMBER: _ClassVar[int]
    path: str
    include_globs: _containers.RepeatedScalarFieldContainer[str]
    exclude_globs: _containers.RepeatedScalarFieldContainer[str]
    held_out_fraction: float
    def __init__(self, path: _Optional[str] = ..., include_globs: _Optional[_Iterable[str]] = ..., exclude_globs: _Optional[_Iterable[str]] = ..., held_out_fraction: _Optional[float] = ...) -> None: ...

class TrainingSettings(_message.Message):
    __slots__ = ("steps", "learning_rate", "warmup_steps", "gradient_accumulation_steps", "weight_decay", "max_gradient_norm", "seed", "checkpoint_every_steps", "evaluation_windows", "checkpoint_every_seconds")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ACCUMULATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    learning_rate: float
    warmup_steps: int
    gradient_accumulation_steps: int
    weight_decay: float
    max_gradient_norm: float
    seed: int
    checkpoint_every_steps: int
    evaluation_windows: int
    checkpoint_every_seconds: int
    def __init__(self, steps: _Optional[int] = ..., learning_rate: _Optional[float] = ..., warmup_steps: _Optional[int] = ..., gradient_accumulation_steps: _Optional[int] = ..., weight_decay: _Optional[float] = ..., max_gradient_norm: _Optional[float] = ..., seed: _Optional[int] = ..., checkpoint_every_steps: _Optional[int] = ..., evaluation_windows: _Optional[int] = ..., checkpoint_every_seconds: _Optional[int] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("run_id", "request_id", "state", "spec", "created_at", "started_at", "finished_at", "progress", "error", "adapter_path", "attempt_count", "worker_name", "cancel_requested", "status_detail", "pause_requested", "replan_count", "device_class", "submitted_by", "traceparent")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_PATH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    WORKER_NAME_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    STATUS_DETAIL_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    REPLAN_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    request_id: str
    state: RunState
    spec: RunSpec
    created_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    progress: RunProgress
    error: RunError
    adapter_path: str
    attempt_count: int
    worker_name: str
    cancel_requested: bool
    status_detail: str
    pause_requested: bool
    replan_count: int
    device_class: str
    submitted_by: str
    traceparent: str
    def __init__(self, run_id: _Optional[str] = ..., request_id: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., spec: _Optional[_Union[RunSpec, _Mapping]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[_Union[RunProgress, _Mapping]] = ..., error: _Optional[_Union[RunError, _Mapping]] = ..., adapter_path: _Optional[str] = ..., attempt_count: _Optional[int] = ..., worker_name: _Optional[str] = ..., cancel_requested: _Optional[bool] = ..., status_detail: _Optional[str] = ..., pause_requested: _Optional[bool] = ..., replan_count: _Optional[int] = ..., device_class: _Optional[str] = ..., submitted_by: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class RunProgress(_message.Message):
    __slots__ = ("completed_steps", "total_steps", "loss", "step_seconds", "tokens_per_second", "measured_peak_bytes", "predicted_peak_bytes", "held_out_loss_before", "held_out_loss_after", "step_phases")
    COMPLETED_STEPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MEASURED_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_AFTER_FIELD_NUMBER: _ClassVar[int]
    STEP_PHASES_FIELD_NUMBER: _ClassVar[int]
    completed_steps: int
    total_steps: int
    loss: float
    step_seconds: float
    tokens_per_second: float
    measured_peak_bytes: int
    predicted_peak_bytes: int
    held_out_loss_before: float
    held_out_loss_after: float
    step_phases: StepPhases
    def __init__(self, completed_steps: _Optional[int] = ..., total_steps: _Optional[int] = ..., loss: _Optional[float] = ..., step_seconds: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., measured_peak_bytes: _Optional[int] = ..., predicted_peak_bytes: _Optional[int] = ..., held_out_loss_before: _Optional[float] = ..., held_out_loss_after: _Optional[float] = ..., step_phases: _Optional[_Union[StepPhases, _Mapping]] = ...) -> None: ...

class RunError(_message.Message):
    __slots__ = ("cause", "message", "stderr_tail")
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STDERR_TAIL_FIELD_NUMBER: _ClassVar[int]
    cause: FailureCause
    message: str
    stderr_tail: str
    def __init__(self, cause: _Optional[_Union[FailureCause, str]] = ..., message: _Optional[str] = ..., stderr_tail: _Optional[str] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("cursor", "run_id", "time", "state_changed", "phase_started", "data_prepared", "model_loaded", "step_completed", "evaluated", "checkpoint_saved", "adapter_saved", "engine_failed", "replanned")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    PHASE_STARTED_FIELD_NUMBER: _ClassVar[int]
    DATA_PREPARED_FIELD_NUMBER: _ClassVar[int]
    MODEL_LOADED_FIELD_NUMBER: _ClassVar[int]
    STEP_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SAVED_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SAVED_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FAILED_FIELD_NUMBER: _ClassVar[int]
    REPLANNED_FIELD_NUMBER: _ClassVar[int]
    cursor: str
    run_id: str
    time: _timestamp_pb2.Timestamp
    state_changed: StateChanged
    phase_started: PhaseStarted
    data_prepared: DataPrepared
    model_loaded: ModelLoaded
    step_completed: StepCompleted
    evaluated: Evaluated
    checkpoint_saved: CheckpointSaved
    adapter_saved: AdapterSaved
    engine_failed: EngineFailed
    replanned: Replanned
    def __init__(self, cursor: _Optional[str] = ..., run_id: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state_changed: _Optional[_Union[StateChanged, _Mapping]] = ..., phase_started: _Optional[_Union[PhaseStarted, _Mapping]] = ..., data_prepared: _Optional[_Union[DataPrepared, _Mapping]] = ..., model_loaded: _Optional[_Union[ModelLoaded, _Mapping]] = ..., step_completed: _Optional[_Union[StepCompleted, _Mapping]] = ..., evaluated: _Optional[_Union[Evaluated, _Mapping]] = ..., checkpoint_saved: _Optional[_Union[CheckpointSaved, _Mapping]] = ..., adapter_saved: _Optional[_Union[AdapterSaved, _Mapping]] = ..., engine_failed: _Optional[_Union[EngineFailed, _Mapping]] = ..., replanned: _Optional[_Union[Replanned, _Mapping]] = ...) -> None: ...

class StateChanged(_message.Message):
    __slots__ = ("to", "detail")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    to: RunState
    detail: str
    def __init__(self, to: _Optional[_Union[RunState, str]] = ..., detail: _Optional[str] = ..., **kwargs) -> None: ...

class PhaseStarted(_message.Message):
    __slots__ = ("phase",)
    PHASE_FIELD_NUMBER: _ClassVar[int]
    phase: str
    def __init__(self, phase: _Optional[str] = ...) -> None: ...

class DataPrepared(_message.Message):
    __slots__ = ("file_count", "token_count", "training_window_count", "held_out_window_count", "skipped_files", "skipped_file_count", "seconds")
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRAINING_WINDOW_COUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_WINDOW_COUNT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FILES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    file_count: int
    token_count: int
    training_window_count: int
    held_out_window_count: int
    skipped_files: _containers.RepeatedScalarFieldContainer[str]
    skipped_file_count: int
    seconds: float
    def __init__(self, file_count: _Optional[int] = ..., token_count: _Optional[int] = ..., training_window_count: _Optional[int] = ..., held_out_window_count: _Optional[int] = ..., skipped_files: _Optional[_Iterable[str]] = ..., skipped_file_count: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ModelLoaded(_message.Message):
    __slots__ = ("parameter_count", "trainable_parameter_count", "attention_kernel", "device_name", "memory_bytes", "seconds", "applied")
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_KERNEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    parameter_count: int
    trainable_parameter_count: int
    attention_kernel: str
    device_name: str
    memory_bytes: int
    seconds: float
    applied: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, parameter_count: _Optional[int] = ..., trainable_parameter_count: _Optional[int] = ..., attention_kernel: _Optional[str] = ..., device_name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., applied: _Optional[_Iterable[str]] = ...) -> None: ...

class StepCompleted(_message.Message):
    __slots__ = ("step", "total_steps", "loss", "gradient_norm", "learning_rate", "step_seconds", "tokens_per_second", "measured_peak_bytes", "predicted_peak_bytes", "host_peak_bytes", "disk_written_bytes", "phases", "host_to_device_bytes", "device_to_host_bytes", "disk_read_bytes")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MEASURED_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    HOST_TO_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TO_HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    loss: float
    gradient_norm: float
    learning_rate: float
    step_seconds: float
    tokens_per_second: float
    measured_peak_bytes: int
    predicted_peak_bytes: int
    host_peak_bytes: int
    disk_written_bytes: int
    phases: StepPhases
    host_to_device_bytes: int
    device_to_host_bytes: int
    disk_read_bytes: int
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., loss: _Optional[float] = ..., gradient_norm: _Optional[float] = ..., learning_rate: _Optional[float] = ..., step_seconds: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., measured_peak_bytes: _Optional[int] = ..., predicted_peak_bytes: _Optional[int] = ..., host_peak_bytes: _Optional[int] = ..., disk_written_bytes: _Optional[int] = ..., phases: _Optional[_Union[StepPhases, _Mapping]] = ..., host_to_device_bytes: _Optional[int] = ..., device_to_host_bytes: _Optional[int] = ..., disk_read_bytes: _Optional[int] = ...) -> None: ...

class StepPhases(_message.Message):
    __slots__ = ("forward_seconds", "loss_seconds", "backward_seconds", "optimizer_seconds")
    FORWARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOSS_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    forward_seconds: float
    loss_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    def __init__(self, forward_seconds: _Optional[float] = ..., loss_seconds: _Optional[float] = ..., backward_seconds: _Optional[float] = ..., optimizer_seconds: _Optional[float] = ...) -> None: ...

class Evaluated(_message.Message):
    __slots__ = ("before_training", "loss", "window_count", "step")
    BEFORE_TRAINING_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_COUNT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    before_training: bool
    loss: float
    window_count: int
    step: int
    def __init__(self, before_training: _Optional[bool] = ..., loss: _Optional[float] = ..., window_count: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class CheckpointSaved(_message.Message):
    __slots__ = ("step", "path", "bytes", "stages_done", "stage_count", "seconds", "windows_done")
    STEP_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGES_DONE_FIELD_NUMBER: _ClassVar[int]
    STAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_DONE_FIELD_NUMBER: _ClassVar[int]
    step: int
    path: str
    bytes: int
    stages_done: int
    stage_count: int
    seconds: float
    windows_done: int
    def __init__(self, step: _Optional[int] = ..., path: _Optional[str] = ..., bytes: _Optional[int] = ..., stages_done: _Optional[int] = ..., stage_count: _Optional[int] = ..., seconds: _Optional[float] = ..., windows_done: _Optional[int] = ...) -> None: ...

class AdapterSaved(_message.Message):
    __slots__ = ("path", "bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    bytes: int
    def __init__(self, path: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Replanned(_message.Message):
    __slots__ = ("cause", "detail", "device_bytes_before", "device_bytes_after", "step_seconds_before", "step_seconds_after", "optimizations_added", "optimizations_dropped")
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_BEFORE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_AFTER_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_AFTER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATIONS_ADDED_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATIONS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    cause: FailureCause
    detail: str
    device_bytes_before: int
    device_bytes_after: int
    step_seconds_before: float
    step_seconds_after: float
    optimizations_added: _containers.RepeatedScalarFieldContainer[str]
    optimizations_dropped: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cause: _Optional[_Union[FailureCause, str]] = ..., detail: _Optional[str] = ..., device_bytes_before: _Optional[int] = ..., device_bytes_after: _Optional[int] = ..., step_seconds_before: _Optional[float] = ..., step_seconds_after: _Optional[float] = ..., optimizations_added: _Optional[_Iterable[str]] = ..., optimizations_dropped: _Optional[_Iterable[str]] = ...) -> None: ...

class EngineFailed(_message.Message):
    __slots__ = ("cause", "message")
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    cause: FailureCause
    message: str
    def __init__(self, cause: _Optional[_Union[FailureCause, str]] = ..., message: _Optional[str] = ...) -> None: ...
