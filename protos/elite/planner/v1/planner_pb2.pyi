from elite.access.v1 import access_pb2 as _access_pb2
from elite.profiler.v1 import profiler_pb2 as _profiler_pb2
from elite.validation.v1 import validation_pb2 as _validation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_MAX_CONTEXT: _ClassVar[Objective]
    OBJECTIVE_FASTEST: _ClassVar[Objective]

class Resource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESOURCE_UNSPECIFIED: _ClassVar[Resource]
    RESOURCE_GPU_MEMORY: _ClassVar[Resource]
    RESOURCE_HOST_MEMORY: _ClassVar[Resource]
    RESOURCE_DISK: _ClassVar[Resource]
    RESOURCE_TIME: _ClassVar[Resource]
    RESOURCE_SOFTWARE: _ClassVar[Resource]

class Executor(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTOR_UNSPECIFIED: _ClassVar[Executor]
    EXECUTOR_RESIDENT: _ClassVar[Executor]
    EXECUTOR_STREAMING: _ClassVar[Executor]

class BasePrecision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BASE_PRECISION_UNSPECIFIED: _ClassVar[BasePrecision]
    BASE_PRECISION_FULL: _ClassVar[BasePrecision]
    BASE_PRECISION_NF4: _ClassVar[BasePrecision]

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]

class CheckpointPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHECKPOINT_POLICY_UNSPECIFIED: _ClassVar[CheckpointPolicy]
    CHECKPOINT_POLICY_NONE: _ClassVar[CheckpointPolicy]
    CHECKPOINT_POLICY_EVERY_LAYER: _ClassVar[CheckpointPolicy]
    CHECKPOINT_POLICY_SELECTIVE: _ClassVar[CheckpointPolicy]

class OptimizerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTIMIZER_KIND_UNSPECIFIED: _ClassVar[OptimizerKind]
    OPTIMIZER_KIND_ADAMW: _ClassVar[OptimizerKind]
    OPTIMIZER_KIND_ADAMW_8BIT: _ClassVar[OptimizerKind]

class Placement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLACEMENT_UNSPECIFIED: _ClassVar[Placement]
    PLACEMENT_DEVICE: _ClassVar[Placement]
    PLACEMENT_HOST: _ClassVar[Placement]
    PLACEMENT_DISK: _ClassVar[Placement]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_EXACT: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]
    CODEC_NF4: _ClassVar[Codec]

class OptimizationStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTIMIZATION_STATUS_UNSPECIFIED: _ClassVar[OptimizationStatus]
    OPTIMIZATION_STATUS_APPLIED: _ClassVar[OptimizationStatus]
    OPTIMIZATION_STATUS_OFFERED: _ClassVar[OptimizationStatus]
    OPTIMIZATION_STATUS_DECLINED: _ClassVar[OptimizationStatus]
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_MAX_CONTEXT: Objective
OBJECTIVE_FASTEST: Objective
RESOURCE_UNSPECIFIED: Resource
RESOURCE_GPU_MEMORY: Resource
RESOURCE_HOST_MEMORY: Resource
RESOURCE_DISK: Resource
RESOURCE_TIME: Resource
RESOURCE_SOFTWARE: Resource
EXECUTOR_UNSPECIFIED: Executor
EXECUTOR_RESIDENT: Executor
EXECUTOR_STREAMING: Executor
BASE_PRECISION_UNSPECIFIED: BasePrecision
BASE_PRECISION_FULL: BasePrecision
BASE_PRECISION_NF4: BasePrecision
DTYPE_UNSPECIFIED: Dtype
DTYPE_BFLOAT16: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_FLOAT32: Dtype
CHECKPOINT_POLICY_UNSPECIFIED: CheckpointPolicy
CHECKPOINT_POLICY_NONE: CheckpointPolicy
CHECKPOINT_POLICY_EVERY_LAYER: CheckpointPolicy
CHECKPOINT_POLICY_SELECTIVE: CheckpointPolicy
OPTIMIZER_KIND_UNSPECIFIED: OptimizerKind
OPTIMIZER_KIND_ADAMW: OptimizerKind
OPTIMIZER_KIND_ADAMW_8BIT: OptimizerKind
PLACEMENT_UNSPECIFIED: Placement
PLACEMENT_DEVICE: Placement
PLACEMENT_HOST: Placement
PLACEMENT_DISK: Placement
CODEC_UNSPECIFIED: Codec
CODEC_EXACT: Codec
CODEC_INT8: Codec
CODEC_NF4: Codec
OPTIMIZATION_STATUS_UNSPECIFIED: OptimizationStatus
OPTIMIZATION_STATUS_APPLIED: OptimizationStatus
OPTIMIZATION_STATUS_OFFERED: OptimizationStatus
OPTIMIZATION_STATUS_DECLINED: OptimizationStatus

class PlanRequest(_message.Message):
    __slots__ = ("machine", "model", "constraints", "objective", "adapters", "schedule", "explain")
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    machine: Machine
    model: ModelReference
    constraints: Constraints
    objective: Objective
    adapters: Adapters
    schedule: Schedule
    explain: bool
    def __init__(self, machine: _Optional[_Union[Machine, _Mapping]] = ..., model: _Optional[_Union[ModelReference, _Mapping]] = ..., constraints: _Optional[_Union[Constraints, _Mapping]] = ..., objective: _Optional[_Union[Objective, str]] = ..., adapters: _Optional[_Union[Adapters, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., explain: _Optional[bool] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("chosen", "budget", "tiers", "model", "notes")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    chosen: Plan
    budget: Budget
    tiers: _containers.RepeatedCompositeFieldContainer[TierVerdict]
    model: ModelSummary
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, chosen: _Optional[_Union[Plan, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[TierVerdict, _Mapping]]] = ..., model: _Optional[_Union[ModelSummary, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class EstimateRequest(_message.Message):
    __slots__ = ("machine", "model", "tier", "optimization_ids", "constraints", "adapters", "schedule", "execution", "explain")
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_IDS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    machine: Machine
    model: ModelReference
    tier: int
    optimization_ids: _containers.RepeatedScalarFieldContainer[str]
    constraints: Constraints
    adapters: Adapters
    schedule: Schedule
    execution: Execution
    explain: bool
    def __init__(self, machine: _Optional[_Union[Machine, _Mapping]] = ..., model: _Optional[_Union[ModelReference, _Mapping]] = ..., tier: _Optional[int] = ..., optimization_ids: _Optional[_Iterable[str]] = ..., constraints: _Optional[_Union[Constraints, _Mapping]] = ..., adapters: _Optional[_Union[Adapters, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., execution: _Optional[_Union[Execution, _Mapping]] = ..., explain: _Optional[bool] = ...) -> None: ...

class EstimateResponse(_message.Message):
    __slots__ = ("plan", "budget", "verdict", "notes")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    budget: Budget
    verdict: TierVerdict
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., verdict: _Optional[_Union[TierVerdict, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class WhatIfRequest(_message.Message):
    __slots__ = ("gpu_ids", "host_memory_bytes", "disk_free_bytes", "model", "constraints", "objective", "adapters", "schedule")
    GPU_IDS_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    gpu_ids: _containers.RepeatedScalarFieldContainer[str]
    host_memory_bytes: int
    disk_free_bytes: int
    model: ModelReference
    constraints: Constraints
    objective: Objective
    adapters: Adapters
    schedule: Schedule
    def __init__(self, gpu_ids: _Optional[_Iterable[str]] = ..., host_memory_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., model: _Optional[_Union[ModelReference, _Mapping]] = ..., constraints: _Optional[_Union[Constraints, _Mapping]] = ..., objective: _Optional[_Union[Objective, str]] = ..., adapters: _Optional[_Union[Adapters, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ...) -> None: ...

class WhatIfResponse(_message.Message):
    __slots__ = ("alternatives", "model", "notes")
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    alternatives: _containers.RepeatedCompositeFieldContainer[Alternative]
    model: ModelSummary
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, alternatives: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., model: _Optional[_Union[ModelSummary, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("gpu_id", "name", "chosen", "verdict", "notes")
    GPU_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    gpu_id: str
    name: str
    chosen: Plan
    verdict: TierVerdict
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, gpu_id: _Optional[str] = ..., name: _Optional[str] = ..., chosen: _Optional[_Union[Plan, _Mapping]] = ..., verdict: _Optional[_Union[TierVerdict, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class Adapters(_message.Message):
    __slots__ = ("target_modules", "dtype", "dropout", "rank")
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    dtype: Dtype
    dropout: float
    rank: int
    def __init__(self, target_modules: _Optional[_Iterable[str]] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., dropout: _Optional[float] = ..., rank: _Optional[int] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("steps", "epochs", "dataset_tokens", "gradient_accumulation_steps", "curriculum")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    DATASET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ACCUMULATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    CURRICULUM_FIELD_NUMBER: _ClassVar[int]
    steps: int
    epochs: float
    dataset_tokens: int
    gradient_accumulation_steps: int
    curriculum: _containers.RepeatedCompositeFieldContainer[CurriculumStage]
    def __init__(self, steps: _Optional[int] = ..., epochs: _Optional[float] = ..., dataset_tokens: _Optional[int] = ..., gradient_accumulation_steps: _Optional[int] = ..., curriculum: _Optional[_Iterable[_Union[CurriculumStage, _Mapping]]] = ...) -> None: ...

class CurriculumStage(_message.Message):
    __slots__ = ("tier", "steps")
    TIER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    tier: int
    steps: int
    def __init__(self, tier: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class Machine(_message.Message):
    __slots__ = ("profile", "hypothetical")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    HYPOTHETICAL_FIELD_NUMBER: _ClassVar[int]
    profile: _profiler_pb2.NodeProfile
    hypothetical: HypotheticalMachine
    def __init__(self, profile: _Optional[_Union[_profiler_pb2.NodeProfile, _Mapping]] = ..., hypothetical: _Optional[_Union[HypotheticalMachine, _Mapping]] = ...) -> None: ...

class HypotheticalMachine(_message.Message):
    __slots__ = ("gpu_id", "host_memory_bytes", "disk_free_bytes")
    GPU_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    gpu_id: str
    host_memory_bytes: int
    disk_free_bytes: int
    def __init__(self, gpu_id: _Optional[str] = ..., host_memory_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ...) -> None: ...

class ModelReference(_message.Message):
    __slots__ = ("model_id", "config_json")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    config_json: str
    def __init__(self, model_id: _Optional[str] = ..., config_json: _Optional[str] = ...) -> None: ...

class Constraints(_message.Message):
    __slots__ = ("host_memory_bytes", "disk_bytes", "max_step_seconds", "exact_only", "tier", "headroom_fraction", "device_index", "max_run_seconds", "allowed_lossy_ids", "forbidden_lossy_ids", "gpu_memory_bytes")
    HOST_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXACT_ONLY_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    HEADROOM_FRACTION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_LOSSY_IDS_FIELD_NUMBER: _ClassVar[int]
    FORBIDDEN_LOSSY_IDS_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    host_memory_bytes: int
    disk_bytes: int
    max_step_seconds: float
    exact_only: bool
    tier: int
    headroom_fraction: float
    device_index: int
    max_run_seconds: float
    allowed_lossy_ids: _containers.RepeatedScalarFieldContainer[str]
    forbidden_lossy_ids: _containers.RepeatedScalarFieldContainer[str]
    gpu_memory_bytes: int
    def __init__(self, host_memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., max_step_seconds: _Optional[float] = ..., exact_only: _Optional[bool] = ..., tier: _Optional[int] = ..., headroom_fraction: _Optional[float] = ..., device_index: _Optional[int] = ..., max_run_seconds: _Optional[float] = ..., allowed_lossy_ids: _Optional[_Iterable[str]] = ..., forbidden_lossy_ids: _Optional[_Iterable[str]] = ..., gpu_memory_bytes: _Optional[int] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("gpu_bytes", "host_bytes", "disk_bytes", "headroom_fraction", "gpu_safe_bytes", "host_safe_bytes", "gpu_memory_is_host_memory", "device_name")
    GPU_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEADROOM_FRACTION_FIELD_NUMBER: _ClassVar[int]
    GPU_SAFE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_SAFE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_IS_HOST_MEMORY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    gpu_bytes: int
    host_bytes: int
    disk_bytes: int
    headroom_fraction: float
    gpu_safe_bytes: int
    host_safe_bytes: int
    gpu_memory_is_host_memory: bool
    device_name: str
    def __init__(self, gpu_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., headroom_fraction: _Optional[float] = ..., gpu_safe_bytes: _Optional[int] = ..., host_safe_bytes: _Optional[int] = ..., gpu_memory_is_host_memory: _Optional[bool] = ..., device_name: _Optional[str] = ...) -> None: ...

class TierVerdict(_message.Message):
    __slots__ = ("tier", "context_tokens", "target_tokens", "lora_rank", "fits", "binding_resource", "shortfall_bytes", "shortfall_seconds", "gpu_bytes", "host_bytes", "disk_bytes", "step_seconds", "optimization_ids", "remedy", "remedies", "step_seconds_low", "step_seconds_high", "run_seconds")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    BINDING_RESOURCE_FIELD_NUMBER: _ClassVar[int]
    SHORTFALL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHORTFALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GPU_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_IDS_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    REMEDIES_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_LOW_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_HIGH_FIELD_NUMBER: _ClassVar[int]
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    tier: int
    context_tokens: int
    target_tokens: int
    lora_rank: int
    fits: bool
    binding_resource: Resource
    shortfall_bytes: int
    shortfall_seconds: float
    gpu_bytes: int
    host_bytes: int
    disk_bytes: int
    step_seconds: float
    optimization_ids: _containers.RepeatedScalarFieldContainer[str]
    remedy: str
    remedies: _containers.RepeatedCompositeFieldContainer[Remedy]
    step_seconds_low: float
    step_seconds_high: float
    run_seconds: float
    def __init__(self, tier: _Optional[int] = ..., context_tokens: _Optional[int] = ..., target_tokens: _Optional[int] = ..., lora_rank: _Optional[int] = ..., fits: _Optional[bool] = ..., binding_resource: _Optional[_Union[Resource, str]] = ..., shortfall_bytes: _Optional[int] = ..., shortfall_seconds: _Optional[float] = ..., gpu_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., step_seconds: _Optional[float] = ..., optimization_ids: _Optional[_Iterable[str]] = ..., remedy: _Optional[str] = ..., remedies: _Optional[_Iterable[_Union[Remedy, _Mapping]]] = ..., step_seconds_low: _Optional[float] = ..., step_seconds_high: _Optional[float] = ..., run_seconds: _Optional[float] = ...) -> None: ...

class Remedy(_message.Message):
    __slots__ = ("text", "resource", "bytes", "seconds", "gpu_id", "optimization_id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    GPU_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    resource: Resource
    bytes: int
    seconds: float
    gpu_id: str
    optimization_id: str
    def __init__(self, text: _Optional[str] = ..., resource: _Optional[_Union[Resource, str]] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., gpu_id: _Optional[str] = ..., optimization_id: _Optional[str] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("tier", "context_tokens", "target_tokens", "model", "lora", "execution", "optimizations", "gpu_memory", "host_memory", "disk", "step_seconds", "time_lines", "device_kind", "device_index", "step_seconds_low", "step_seconds_high", "start_seconds", "disk_written_bytes_per_step", "power_watts", "run", "calibration", "derivations", "planned_on")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATIONS_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TIME_LINES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_LOW_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_HIGH_FIELD_NUMBER: _ClassVar[int]
    START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITTEN_BYTES_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    DERIVATIONS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_ON_FIELD_NUMBER: _ClassVar[int]
    tier: int
    context_tokens: int
    target_tokens: int
    model: ModelSummary
    lora: Lora
    execution: Execution
    optimizations: _containers.RepeatedCompositeFieldContainer[AppliedOptimization]
    gpu_memory: MemoryEstimate
    host_memory: MemoryEstimate
    disk: MemoryEstimate
    step_seconds: float
    time_lines: _containers.RepeatedCompositeFieldContainer[TimeLine]
    device_kind: _profiler_pb2.DeviceKind
    device_index: int
    step_seconds_low: float
    step_seconds_high: float
    start_seconds: float
    disk_written_bytes_per_step: int
    power_watts: float
    run: RunCost
    calibration: Calibration
    derivations: _containers.RepeatedCompositeFieldContainer[Derivation]
    planned_on: PlannedOn
    def __init__(self, tier: _Optional[int] = ..., context_tokens: _Optional[int] = ..., target_tokens: _Optional[int] = ..., model: _Optional[_Union[ModelSummary, _Mapping]] = ..., lora: _Optional[_Union[Lora, _Mapping]] = ..., execution: _Optional[_Union[Execution, _Mapping]] = ..., optimizations: _Optional[_Iterable[_Union[AppliedOptimization, _Mapping]]] = ..., gpu_memory: _Optional[_Union[MemoryEstimate, _Mapping]] = ..., host_memory: _Optional[_Union[MemoryEstimate, _Mapping]] = ..., disk: _Optional[_Union[MemoryEstimate, _Mapping]] = ..., step_seconds: _Optional[float] = ..., time_lines: _Optional[_Iterable[_Union[TimeLine, _Mapping]]] = ..., device_kind: _Optional[_Union[_profiler_pb2.DeviceKind, str]] = ..., device_index: _Optional[int] = ..., step_seconds_low: _Optional[float] = ..., step_seconds_high: _Optional[float] = ..., start_seconds: _Optional[float] = ..., disk_written_bytes_per_step: _Optional[int] = ..., power_watts: _Optional[float] = ..., run: _Optional[_Union[RunCost, _Mapping]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., derivations: _Optional[_Iterable[_Union[Derivation, _Mapping]]] = ..., planned_on: _Optional[_Union[PlannedOn, _Mapping]] = ...) -> None: ...

class PlannedOn(_message.Message):
    __slots__ = ("device_name", "driver_version", "torch_version")
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    device_name: str
    driver_version: str
    torch_version: str
    def __init__(self, device_name: _Optional[str] = ..., driver_version: _Optional[str] = ..., torch_version: _Optional[str] = ...) -> None: ...

class RunCost(_message.Message):
    __slots__ = ("steps", "seconds", "seconds_low", "seconds_high", "energy_joules", "disk_written_bytes", "trained_tokens", "stages")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LOW_FIELD_NUMBER: _ClassVar[int]
    SECONDS_HIGH_FIELD_NUMBER: _ClassVar[int]
    ENERGY_JOULES_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    steps: int
    seconds: float
    seconds_low: float
    seconds_high: float
    energy_joules: float
    disk_written_bytes: int
    trained_tokens: int
    stages: _containers.RepeatedCompositeFieldContainer[RunStage]
    def __init__(self, steps: _Optional[int] = ..., seconds: _Optional[float] = ..., seconds_low: _Optional[float] = ..., seconds_high: _Optional[float] = ..., energy_joules: _Optional[float] = ..., disk_written_bytes: _Optional[int] = ..., trained_tokens: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[RunStage, _Mapping]]] = ...) -> None: ...

class RunStage(_message.Message):
    __slots__ = ("tier", "steps", "step_seconds", "seconds")
    TIER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    tier: int
    steps: int
    step_seconds: float
    seconds: float
    def __init__(self, tier: _Optional[int] = ..., steps: _Optional[int] = ..., step_seconds: _Optional[float] = ..., seconds: _Optional[float] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("memory_run_count", "time_run_count", "memory_factor", "time_factor")
    MEMORY_RUN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIME_RUN_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FACTOR_FIELD_NUMBER: _ClassVar[int]
    TIME_FACTOR_FIELD_NUMBER: _ClassVar[int]
    memory_run_count: int
    time_run_count: int
    memory_factor: float
    time_factor: float
    def __init__(self, memory_run_count: _Optional[int] = ..., time_run_count: _Optional[int] = ..., memory_factor: _Optional[float] = ..., time_factor: _Optional[float] = ...) -> None: ...

class Derivation(_message.Message):
    __slots__ = ("budget", "line", "formula_id", "expression", "with_numbers", "value")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    FORMULA_ID_FIELD_NUMBER: _ClassVar[int]
    EXPRESSION_FIELD_NUMBER: _ClassVar[int]
    WITH_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    budget: str
    line: str
    formula_id: str
    expression: str
    with_numbers: str
    value: float
    def __init__(self, budget: _Optional[str] = ..., line: _Optional[str] = ..., formula_id: _Optional[str] = ..., expression: _Optional[str] = ..., with_numbers: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Lora(_message.Message):
    __slots__ = ("rank", "alpha", "target_modules", "parameter_count", "dtype", "dropout")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    parameter_count: int
    dtype: Dtype
    dropout: float
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., parameter_count: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., dropout: _Optional[float] = ...) -> None: ...

class Store(_message.Message):
    __slots__ = ("placement", "codec")
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    placement: Placement
    codec: Codec
    def __init__(self, placement: _Optional[_Union[Placement, str]] = ..., codec: _Optional[_Union[Codec, str]] = ...) -> None: ...

class Streaming(_message.Message):
    __slots__ = ("chunk_tokens", "key_values", "attention_outputs", "hidden_gradients", "page_tokens", "kept_keys")
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUES_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_KEYS_FIELD_NUMBER: _ClassVar[int]
    chunk_tokens: int
    key_values: Store
    attention_outputs: Store
    hidden_gradients: Store
    page_tokens: int
    kept_keys: Store
    def __init__(self, chunk_tokens: _Optional[int] = ..., key_values: _Optional[_Union[Store, _Mapping]] = ..., attention_outputs: _Optional[_Union[Store, _Mapping]] = ..., hidden_gradients: _Optional[_Union[Store, _Mapping]] = ..., page_tokens: _Optional[int] = ..., kept_keys: _Optional[_Union[Store, _Mapping]] = ...) -> None: ...

class Execution(_message.Message):
    __slots__ = ("executor", "base_precision", "compute_dtype", "checkpoint_policy", "layer_inputs", "loss_tile_rows", "optimizer", "attention_kernel", "layer_input_interval", "weight_placement", "key_value_head_count", "streaming")
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    BASE_PRECISION_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_POLICY_FIELD_NUMBER: _ClassVar[int]
    LAYER_INPUTS_FIELD_NUMBER: _ClassVar[int]
    LOSS_TILE_ROWS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_KERNEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_INPUT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUE_HEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    executor: Executor
    base_precision: BasePrecision
    compute_dtype: Dtype
    checkpoint_policy: CheckpointPolicy
    layer_inputs: Store
    loss_tile_rows: int
    optimizer: OptimizerKind
    attention_kernel: str
    layer_input_interval: int
    weight_placement: Placement
    key_value_head_count: int
    streaming: Streaming
    def __init__(self, executor: _Optional[_Union[Executor, str]] = ..., base_precision: _Optional[_Union[BasePrecision, str]] = ..., compute_dtype: _Optional[_Union[Dtype, str]] = ..., checkpoint_policy: _Optional[_Union[CheckpointPolicy, str]] = ..., layer_inputs: _Optional[_Union[Store, _Mapping]] = ..., loss_tile_rows: _Optional[int] = ..., optimizer: _Optional[_Union[OptimizerKind, str]] = ..., attention_kernel: _Optional[str] = ..., layer_input_interval: _Optional[int] = ..., weight_placement: _Optional[_Union[Placement, str]] = ..., key_value_head_count: _Optional[int] = ..., streaming: _Optional[_Union[Streaming, _Mapping]] = ...) -> None: ...

class AppliedOptimization(_message.Message):
    __slots__ = ("id", "name", "exact")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    exact: bool
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., exact: _Optional[bool] = ...) -> None: ...

class MemoryEstimate(_message.Message):
    __slots__ = ("total_bytes", "lines", "peak_phase", "phases", "headroom_bytes")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    PEAK_PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    HEADROOM_BYTES_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    lines: _containers.RepeatedCompositeFieldContainer[MemoryLine]
    peak_phase: str
    phases: _containers.RepeatedCompositeFieldContainer[PhaseTotal]
    headroom_bytes: int
    def __init__(self, total_bytes: _Optional[int] = ..., lines: _Optional[_Iterable[_Union[MemoryLine, _Mapping]]] = ..., peak_phase: _Optional[str] = ..., phases: _Optional[_Iterable[_Union[PhaseTotal, _Mapping]]] = ..., headroom_bytes: _Optional[int] = ...) -> None: ...

class MemoryLine(_message.Message):
    __slots__ = ("name", "bytes", "formula_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FORMULA_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    formula_id: str
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ..., formula_id: _Optional[str] = ...) -> None: ...

class PhaseTotal(_message.Message):
    __slots__ = ("phase", "bytes")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    phase: str
    bytes: int
    def __init__(self, phase: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class TimeLine(_message.Message):
    __slots__ = ("name", "seconds", "formula_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FORMULA_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    formula_id: str
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ..., formula_id: _Optional[str] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("model_id", "model_type", "parameter_count", "layer_count", "hidden_size", "intermediate_size", "query_head_count", "key_value_head_count", "head_size", "vocabulary_size", "tied_embeddings", "max_position_embeddings", "weights", "display_name")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    QUERY_HEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUE_HEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    TIED_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITION_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model_type: str
    parameter_count: int
    layer_count: int
    hidden_size: int
    intermediate_size: int
    query_head_count: int
    key_value_head_count: int
    head_size: int
    vocabulary_size: int
    tied_embeddings: bool
    max_position_embeddings: int
    weights: WeightSource
    display_name: str
    def __init__(self, model_id: _Optional[str] = ..., model_type: _Optional[str] = ..., parameter_count: _Optional[int] = ..., layer_count: _Optional[int] = ..., hidden_size: _Optional[int] = ..., intermediate_size: _Optional[int] = ..., query_head_count: _Optional[int] = ..., key_value_head_count: _Optional[int] = ..., head_size: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., tied_embeddings: _Optional[bool] = ..., max_position_embeddings: _Optional[int] = ..., weights: _Optional[_Union[WeightSource, _Mapping]] = ..., display_name: _Optional[str] = ...) -> None: ...

class WeightSource(_message.Message):
    __slots__ = ("hub_id", "package")
    HUB_ID_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    hub_id: str
    package: PackagedWeights
    def __init__(self, hub_id: _Optional[str] = ..., package: _Optional[_Union[PackagedWeights, _Mapping]] = ...) -> None: ...

class PackagedWeights(_message.Message):
    __slots__ = ("distribution", "file")
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    distribution: str
    file: str
    def __init__(self, distribution: _Optional[str] = ..., file: _Optional[str] = ...) -> None: ...

class ListTiersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTiersResponse(_message.Message):
    __slots__ = ("tiers",)
    TIERS_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[Tier]
    def __init__(self, tiers: _Optional[_Iterable[_Union[Tier, _Mapping]]] = ...) -> None: ...

class Tier(_message.Message):
    __slots__ = ("tier", "context_tokens", "target_tokens", "lora_rank", "context_multiple", "lines_of_code", "reference_vram_bytes", "custom")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    LINES_OF_CODE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_VRAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_FIELD_NUMBER: _ClassVar[int]
    tier: int
    context_tokens: int
    target_tokens: int
    lora_rank: int
    context_multiple: int
    lines_of_code: int
    reference_vram_bytes: int
    custom: bool
    def __init__(self, tier: _Optional[int] = ..., context_tokens: _Optional[int] = ..., target_tokens: _Optional[int] = ..., lora_rank: _Optional[int] = ..., context_multiple: _Optional[int] = ..., lines_of_code: _Optional[int] = ..., reference_vram_bytes: _Optional[int] = ..., custom: _Optional[bool] = ...) -> None: ...

class ListOptimizationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOptimizationsResponse(_message.Message):
    __slots__ = ("optimizations",)
    OPTIMIZATIONS_FIELD_NUMBER: _ClassVar[int]
    optimizations: _containers.RepeatedCompositeFieldContainer[Optimization]
    def __init__(self, optimizations: _Optional[_Iterable[_Union[Optimization, _Mapping]]] = ...) -> None: ...

class Optimization(_message.Message):
    __slots__ = ("id", "name", "description", "exact", "status", "reason", "requirements", "memory_effect", "time_effect")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_EFFECT_FIELD_NUMBER: _ClassVar[int]
    TIME_EFFECT_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    description: str
    exact: bool
    status: OptimizationStatus
    reason: str
    requirements: _containers.RepeatedScalarFieldContainer[str]
    memory_effect: str
    time_effect: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., exact: _Optional[bool] = ..., status: _Optional[_Union[OptimizationStatus, str]] = ..., reason: _Optional[str] = ..., requirements: _Optional[_Iterable[str]] = ..., memory_effect: _Optional[str] = ..., time_effect: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class ListGpusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListGpusResponse(_message.Message):
    __slots__ = ("gpus",)
    GPUS_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedCompositeFieldContainer[Gpu]
    def __init__(self, gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("gpu_id", "name", "memory_bytes", "compute_capability", "bfloat16_flops_per_second", "float16_flops_per_second", "memory_bandwidth_bytes_per_second", "pcie", "host_to_device_pinned_bytes_per_second", "advice", "power_limit_watts")
    GPU_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    BFLOAT16_FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FLOAT16_FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BANDWIDTH_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PCIE_FIELD_NUMBER: _ClassVar[int]
    HOST_TO_DEVICE_PINNED_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    POWER_LIMIT_WATTS_FIELD_NUMBER: _ClassVar[int]
    gpu_id: str
    name: str
    memory_bytes: int
    compute_capability: _profiler_pb2.ComputeCapability
    bfloat16_flops_per_second: float
    float16_flops_per_second: float
    memory_bandwidth_bytes_per_second: float
    pcie: _profiler_pb2.PcieLink
    host_to_device_pinned_bytes_per_second: float
    advice: str
    power_limit_watts: float
    def __init__(self, gpu_id: _Optional[str] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., compute_capability: _Optional[_Union[_profiler_pb2.ComputeCapability, _Mapping]] = ..., bfloat16_flops_per_second: _Optional[float] = ..., float16_flops_per_second: _Optional[float] = ..., memory_bandwidth_bytes_per_second: _Optional[float] = ..., pcie: _Optional[_Union[_profiler_pb2.PcieLink, _Mapping]] = ..., host_to_device_pinned_bytes_per_second: _Optional[float] = ..., advice: _Optional[str] = ..., power_limit_watts: _Optional[float] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("run_id", "plan", "device_name", "measured_gpu_peak_bytes", "measured_host_peak_bytes", "measured_step_seconds", "out_of_memory", "driver_version", "torch_version")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    MEASURED_GPU_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_HOST_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_MEMORY_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    plan: Plan
    device_name: str
    measured_gpu_peak_bytes: int
    measured_host_peak_bytes: int
    measured_step_seconds: float
    out_of_memory: bool
    driver_version: str
    torch_version: str
    def __init__(self, run_id: _Optional[str] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., device_name: _Optional[str] = ..., measured_gpu_peak_bytes: _Optional[int] = ..., measured_host_peak_bytes: _Optional[int] = ..., measured_step_seconds: _Optional[float] = ..., out_of_memory: _Optional[bool] = ..., driver_version: _Optional[str] = ..., torch_version: _Optional[str] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ("gpu_memory_error", "step_time_error", "recorded_outcomes", "used")
    GPU_MEMORY_ERROR_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_ERROR_FIELD_NUMBER: _ClassVar[int]
    RECORDED_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    gpu_memory_error: float
    step_time_error: float
    recorded_outcomes: int
    used: bool
    def __init__(self, gpu_memory_error: _Optional[float] = ..., step_time_error: _Optional[float] = ..., recorded_outcomes: _Optional[int] = ..., used: _Optional[bool] = ...) -> None: ...
