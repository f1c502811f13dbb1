import datetime

from elite.access.v1 import access_pb2 as _access_pb2
from elite.validation.v1 import validation_pb2 as _validation_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_KIND_UNSPECIFIED: _ClassVar[DeviceKind]
    DEVICE_KIND_CUDA: _ClassVar[DeviceKind]
    DEVICE_KIND_CPU: _ClassVar[DeviceKind]

class MeasurementSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEASUREMENT_SOURCE_UNSPECIFIED: _ClassVar[MeasurementSource]
    MEASUREMENT_SOURCE_STRESS_TEST: _ClassVar[MeasurementSource]
    MEASUREMENT_SOURCE_CARD_TABLE: _ClassVar[MeasurementSource]

class DiskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISK_KIND_UNSPECIFIED: _ClassVar[DiskKind]
    DISK_KIND_NVME: _ClassVar[DiskKind]
    DISK_KIND_SOLID_STATE: _ClassVar[DiskKind]
    DISK_KIND_ROTATIONAL: _ClassVar[DiskKind]
    DISK_KIND_VIRTUAL: _ClassVar[DiskKind]
    DISK_KIND_MEMORY: _ClassVar[DiskKind]
    DISK_KIND_NETWORK: _ClassVar[DiskKind]

class KernelStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KERNEL_STATUS_UNSPECIFIED: _ClassVar[KernelStatus]
    KERNEL_STATUS_WORKS: _ClassVar[KernelStatus]
    KERNEL_STATUS_UNAVAILABLE: _ClassVar[KernelStatus]
DEVICE_KIND_UNSPECIFIED: DeviceKind
DEVICE_KIND_CUDA: DeviceKind
DEVICE_KIND_CPU: DeviceKind
MEASUREMENT_SOURCE_UNSPECIFIED: MeasurementSource
MEASUREMENT_SOURCE_STRESS_TEST: MeasurementSource
MEASUREMENT_SOURCE_CARD_TABLE: MeasurementSource
DISK_KIND_UNSPECIFIED: DiskKind
DISK_KIND_NVME: DiskKind
DISK_KIND_SOLID_STATE: DiskKind
DISK_KIND_ROTATIONAL: DiskKind
DISK_KIND_VIRTUAL: DiskKind
DISK_KIND_MEMORY: DiskKind
DISK_KIND_NETWORK: DiskKind
KERNEL_STATUS_UNSPECIFIED: KernelStatus
KERNEL_STATUS_WORKS: KernelStatus
KERNEL_STATUS_UNAVAILABLE: KernelStatus

class GetProfileRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetProfileResponse(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: NodeProfile
    def __init__(self, profile: _Optional[_Union[NodeProfile, _Mapping]] = ...) -> None: ...

class RunStressTestRequest(_message.Message):
    __slots__ = ("memory_fraction", "quick")
    MEMORY_FRACTION_FIELD_NUMBER: _ClassVar[int]
    QUICK_FIELD_NUMBER: _ClassVar[int]
    memory_fraction: float
    quick: bool
    def __init__(self, memory_fraction: _Optional[float] = ..., quick: _Optional[bool] = ...) -> None: ...

class RunStressTestResponse(_message.Message):
    __slots__ = ("probe", "result", "completed_probes", "total_probes", "profile")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_PROBES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PROBES_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    probe: str
    result: str
    completed_probes: int
    total_probes: int
    profile: NodeProfile
    def __init__(self, probe: _Optional[str] = ..., result: _Optional[str] = ..., completed_probes: _Optional[int] = ..., total_probes: _Optional[int] = ..., profile: _Optional[_Union[NodeProfile, _Mapping]] = ...) -> None: ...

class WatchCapacityRequest(_message.Message):
    __slots__ = ("interval_seconds",)
    INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    interval_seconds: float
    def __init__(self, interval_seconds: _Optional[float] = ...) -> None: ...

class WatchCapacityResponse(_message.Message):
    __slots__ = ("captured_at", "devices", "host_available_bytes", "disk_free_bytes")
    CAPTURED_AT_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    HOST_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    captured_at: _timestamp_pb2.Timestamp
    devices: _containers.RepeatedCompositeFieldContainer[DeviceCapacity]
    host_available_bytes: int
    disk_free_bytes: int
    def __init__(self, captured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[DeviceCapacity, _Mapping]]] = ..., host_available_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ...) -> None: ...

class DeviceCapacity(_message.Message):
    __slots__ = ("index", "uuid", "memory_total_bytes", "memory_free_bytes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    index: int
    uuid: str
    memory_total_bytes: int
    memory_free_bytes: int
    def __init__(self, index: _Optional[int] = ..., uuid: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ...) -> None: ...

class NodeProfile(_message.Message):
    __slots__ = ("node_name", "captured_at", "devices", "host", "software")
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_AT_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    node_name: str
    captured_at: _timestamp_pb2.Timestamp
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    host: Host
    software: Software
    def __init__(self, node_name: _Optional[str] = ..., captured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., host: _Optional[_Union[Host, _Mapping]] = ..., software: _Optional[_Union[Software, _Mapping]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("kind", "index", "name", "uuid", "memory_total_bytes", "memory_free_bytes", "memory_reserved_bytes", "memory_is_host_memory", "compute_capability", "multiprocessor_count", "pcie", "power_limit_watts", "clocks", "ecc_enabled", "multi_instance_gpu", "driver_version", "unavailable_fields", "measurements")
    KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_IS_HOST_MEMORY_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    MULTIPROCESSOR_COUNT_FIELD_NUMBER: _ClassVar[int]
    PCIE_FIELD_NUMBER: _ClassVar[int]
    POWER_LIMIT_WATTS_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    ECC_ENABLED_FIELD_NUMBER: _ClassVar[int]
    MULTI_INSTANCE_GPU_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELDS_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    kind: DeviceKind
    index: int
    name: str
    uuid: str
    memory_total_bytes: int
    memory_free_bytes: int
    memory_reserved_bytes: int
    memory_is_host_memory: bool
    compute_capability: ComputeCapability
    multiprocessor_count: int
    pcie: PcieLink
    power_limit_watts: float
    clocks: Clocks
    ecc_enabled: bool
    multi_instance_gpu: MultiInstanceGpu
    driver_version: str
    unavailable_fields: _containers.RepeatedScalarFieldContainer[str]
    measurements: DeviceMeasurements
    def __init__(self, kind: _Optional[_Union[DeviceKind, str]] = ..., index: _Optional[int] = ..., name: _Optional[str] = ..., uuid: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ..., memory_reserved_bytes: _Optional[int] = ..., memory_is_host_memory: _Optional[bool] = ..., compute_capability: _Optional[_Union[ComputeCapability, _Mapping]] = ..., multiprocessor_count: _Optional[int] = ..., pcie: _Optional[_Union[PcieLink, _Mapping]] = ..., power_limit_watts: _Optional[float] = ..., clocks: _Optional[_Union[Clocks, _Mapping]] = ..., ecc_enabled: _Optional[bool] = ..., multi_instance_gpu: _Optional[_Union[MultiInstanceGpu, _Mapping]] = ..., driver_version: _Optional[str] = ..., unavailable_fields: _Optional[_Iterable[str]] = ..., measurements: _Optional[_Union[DeviceMeasurements, _Mapping]] = ...) -> None: ...

class ComputeCapability(_message.Message):
    __slots__ = ("major", "minor")
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    major: int
    minor: int
    def __init__(self, major: _Optional[int] = ..., minor: _Optional[int] = ...) -> None: ...

class PcieLink(_message.Message):
    __slots__ = ("generation_current", "generation_max", "width_current", "width_max")
    GENERATION_CURRENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_MAX_FIELD_NUMBER: _ClassVar[int]
    WIDTH_CURRENT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_MAX_FIELD_NUMBER: _ClassVar[int]
    generation_current: int
    generation_max: int
    width_current: int
    width_max: int
    def __init__(self, generation_current: _Optional[int] = ..., generation_max: _Optional[int] = ..., width_current: _Optional[int] = ..., width_max: _Optional[int] = ...) -> None: ...

class Clocks(_message.Message):
    __slots__ = ("multiprocessor_megahertz", "multiprocessor_max_megahertz", "memory_megahertz", "memory_max_megahertz")
    MULTIPROCESSOR_MEGAHERTZ_FIELD_NUMBER: _ClassVar[int]
    MULTIPROCESSOR_MAX_MEGAHERTZ_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MEGAHERTZ_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MAX_MEGAHERTZ_FIELD_NUMBER: _ClassVar[int]
    multiprocessor_megahertz: int
    multiprocessor_max_megahertz: int
    memory_megahertz: int
    memory_max_megahertz: int
    def __init__(self, multiprocessor_megahertz: _Optional[int] = ..., multiprocessor_max_megahertz: _Optional[int] = ..., memory_megahertz: _Optional[int] = ..., memory_max_megahertz: _Optional[int] = ...) -> None: ...

class MultiInstanceGpu(_message.Message):
    __slots__ = ("enabled", "parent_uuid", "gpu_instance_id", "compute_instance_id")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    PARENT_UUID_FIELD_NUMBER: _ClassVar[int]
    GPU_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    parent_uuid: str
    gpu_instance_id: int
    compute_instance_id: int
    def __init__(self, enabled: _Optional[bool] = ..., parent_uuid: _Optional[str] = ..., gpu_instance_id: _Optional[int] = ..., compute_instance_id: _Optional[int] = ...) -> None: ...

class DeviceMeasurements(_message.Message):
    __slots__ = ("source", "measured_at", "safe_allocatable_bytes", "runtime_overhead_bytes", "matmul_16bit_flops_per_second", "matmul_16bit_dtype", "matmul_32bit_flops_per_second", "attention_rates", "memory_bandwidth_bytes_per_second", "host_to_device_pinned_bytes_per_second", "host_to_device_pageable_bytes_per_second", "device_to_host_pinned_bytes_per_second", "device_to_host_pageable_bytes_per_second", "matmul_rates", "elementwise_rates", "block_attention_rates", "operation_launch_seconds", "core_wait_share", "lowest_speed_share", "highest_speed_share")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    SAFE_ALLOCATABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_OVERHEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MATMUL_16BIT_FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MATMUL_16BIT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    MATMUL_32BIT_FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_RATES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BANDWIDTH_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    HOST_TO_DEVICE_PINNED_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    HOST_TO_DEVICE_PAGEABLE_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TO_HOST_PINNED_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TO_HOST_PAGEABLE_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MATMUL_RATES_FIELD_NUMBER: _ClassVar[int]
    ELEMENTWISE_RATES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ATTENTION_RATES_FIELD_NUMBER: _ClassVar[int]
    OPERATION_LAUNCH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CORE_WAIT_SHARE_FIELD_NUMBER: _ClassVar[int]
    LOWEST_SPEED_SHARE_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_SPEED_SHARE_FIELD_NUMBER: _ClassVar[int]
    source: MeasurementSource
    measured_at: _timestamp_pb2.Timestamp
    safe_allocatable_bytes: int
    runtime_overhead_bytes: int
    matmul_16bit_flops_per_second: float
    matmul_16bit_dtype: str
    matmul_32bit_flops_per_second: float
    attention_rates: _containers.RepeatedCompositeFieldContainer[AttentionRate]
    memory_bandwidth_bytes_per_second: float
    host_to_device_pinned_bytes_per_second: float
    host_to_device_pageable_bytes_per_second: float
    device_to_host_pinned_bytes_per_second: float
    device_to_host_pageable_bytes_per_second: float
    matmul_rates: _containers.RepeatedCompositeFieldContainer[MatmulRate]
    elementwise_rates: _containers.RepeatedCompositeFieldContainer[ElementwiseRate]
    block_attention_rates: _containers.RepeatedCompositeFieldContainer[AttentionRate]
    operation_launch_seconds: float
    core_wait_share: float
    lowest_speed_share: float
    highest_speed_share: float
    def __init__(self, source: _Optional[_Union[MeasurementSource, str]] = ..., measured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., safe_allocatable_bytes: _Optional[int] = ..., runtime_overhead_bytes: _Optional[int] = ..., matmul_16bit_flops_per_second: _Optional[float] = ..., matmul_16bit_dtype: _Optional[str] = ..., matmul_32bit_flops_per_second: _Optional[float] = ..., attention_rates: _Optional[_Iterable[_Union[AttentionRate, _Mapping]]] = ..., memory_bandwidth_bytes_per_second: _Optional[float] = ..., host_to_device_pinned_bytes_per_second: _Optional[float] = ..., host_to_device_pageable_bytes_per_second: _Optional[float] = ..., device_to_host_pinned_bytes_per_second: _Optional[float] = ..., device_to_host_pageable_bytes_per_second: _Optional[float] = ..., matmul_rates: _Optional[_Iterable[_Union[MatmulRate, _Mapping]]] = ..., elementwise_rates: _Optional[_Iterable[_Union[ElementwiseRate, _Mapping]]] = ..., block_attention_rates: _Optional[_Iterable[_Union[AttentionRate, _Mapping]]] = ..., operation_launch_seconds: _Optional[float] = ..., core_wait_share: _Optional[float] = ..., lowest_speed_share: _Optional[float] = ..., highest_speed_share: _Optional[float] = ...) -> None: ...

class AttentionRate(_message.Message):
    __slots__ = ("sequence_tokens", "flops_per_second", "dtype", "head_size", "forward_flops_per_second", "backward_flops_per_second", "kernel")
    SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HEAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    sequence_tokens: int
    flops_per_second: float
    dtype: str
    head_size: int
    forward_flops_per_second: float
    backward_flops_per_second: float
    kernel: str
    def __init__(self, sequence_tokens: _Optional[int] = ..., flops_per_second: _Optional[float] = ..., dtype: _Optional[str] = ..., head_size: _Optional[int] = ..., forward_flops_per_second: _Optional[float] = ..., backward_flops_per_second: _Optional[float] = ..., kernel: _Optional[str] = ...) -> None: ...

class MatmulRate(_message.Message):
    __slots__ = ("rows", "inner", "outer", "dtype", "flops_per_second")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    INNER_FIELD_NUMBER: _ClassVar[int]
    OUTER_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    rows: int
    inner: int
    outer: int
    dtype: str
    flops_per_second: float
    def __init__(self, rows: _Optional[int] = ..., inner: _Optional[int] = ..., outer: _Optional[int] = ..., dtype: _Optional[str] = ..., flops_per_second: _Optional[float] = ...) -> None: ...

class ElementwiseRate(_message.Message):
    __slots__ = ("dtype", "bytes_per_second", "tensor_bytes", "new_pages")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TENSOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEW_PAGES_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    bytes_per_second: float
    tensor_bytes: int
    new_pages: bool
    def __init__(self, dtype: _Optional[str] = ..., bytes_per_second: _Optional[float] = ..., tensor_bytes: _Optional[int] = ..., new_pages: _Optional[bool] = ...) -> None: ...

class Host(_message.Message):
    __slots__ = ("cpu_name", "physical_core_count", "logical_core_count", "memory_total_bytes", "memory_available_bytes", "process_overhead_bytes", "scratch_disk")
    CPU_NAME_FIELD_NUMBER: _ClassVar[int]
    PHYSICAL_CORE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOGICAL_CORE_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROCESS_OVERHEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_DISK_FIELD_NUMBER: _ClassVar[int]
    cpu_name: str
    physical_core_count: int
    logical_core_count: int
    memory_total_bytes: int
    memory_available_bytes: int
    process_overhead_bytes: int
    scratch_disk: Disk
    def __init__(self, cpu_name: _Optional[str] = ..., physical_core_count: _Optional[int] = ..., logical_core_count: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., process_overhead_bytes: _Optional[int] = ..., scratch_disk: _Optional[_Union[Disk, _Mapping]] = ...) -> None: ...

class Disk(_message.Message):
    __slots__ = ("path", "kind", "total_bytes", "free_bytes", "read_bytes_per_second", "write_bytes_per_second")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    WRITE_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    path: str
    kind: DiskKind
    total_bytes: int
    free_bytes: int
    read_bytes_per_second: float
    write_bytes_per_second: float
    def __init__(self, path: _Optional[str] = ..., kind: _Optional[_Union[DiskKind, str]] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., read_bytes_per_second: _Optional[float] = ..., write_bytes_per_second: _Optional[float] = ...) -> None: ...

class Software(_message.Message):
    __slots__ = ("python_version", "torch_cuda_version", "packages", "attention_kernels")
    PYTHON_VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_CUDA_VERSION_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_KERNELS_FIELD_NUMBER: _ClassVar[int]
    python_version: str
    torch_cuda_version: str
    packages: _containers.RepeatedCompositeFieldContainer[Package]
    attention_kernels: _containers.RepeatedCompositeFieldContainer[AttentionKernel]
    def __init__(self, python_version: _Optional[str] = ..., torch_cuda_version: _Optional[str] = ..., packages: _Optional[_Iterable[_Union[Package, _Mapping]]] = ..., attention_kernels: _Optional[_Iterable[_Union[AttentionKernel, _Mapping]]] = ...) -> None: ...

class Package(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class AttentionKernel(_message.Message):
    __slots__ = ("name", "status", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: KernelStatus
    detail: str
    def __init__(self, name: _Optional[str] = ..., status: _Optional[_Union[KernelStatus, str]] = ..., detail: _Optional[str] = ...) -> None: ...
