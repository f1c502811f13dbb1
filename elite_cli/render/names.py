"""Enum values in words."""

from __future__ import annotations

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2


def _words(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")


def run_state_name(state: trainer_pb2.RunState) -> str:
    """ "running", "succeeded", ..."""
    return _words(trainer_pb2.RunState.Name(state), "RUN_STATE_")


def failure_cause_name(cause: trainer_pb2.FailureCause) -> str:
    """ "device out of memory", "bad data", ..."""
    return _words(trainer_pb2.FailureCause.Name(cause), "FAILURE_CAUSE_")


def optimization_status_name(status: planner_pb2.OptimizationStatus) -> str:
    """ "applied", "offered", "declined"."""
    return _words(planner_pb2.OptimizationStatus.Name(status), "OPTIMIZATION_STATUS_")


_LINES = {
    "base_model": "base model",
    "lora": "LoRA parameters",
    "kv": "keys and values",
}


def line_name(name: str) -> str:
    """ "base model", "activations", ...: a line of memory or of time."""
    return _LINES.get(name, name.replace("_", " "))


_RESOURCES = {
    planner_pb2.RESOURCE_GPU_MEMORY: "GPU memory",
    planner_pb2.RESOURCE_HOST_MEMORY: "host memory",
    planner_pb2.RESOURCE_DISK: "disk",
    planner_pb2.RESOURCE_TIME: "time",
    planner_pb2.RESOURCE_SOFTWARE: "software",
}


def resource_name(resource: planner_pb2.Resource, budget: planner_pb2.Budget) -> str:
    """ "GPU memory"; plain "memory" where device and host share one pool."""
    memory = (planner_pb2.RESOURCE_GPU_MEMORY, planner_pb2.RESOURCE_HOST_MEMORY)
    if budget.gpu_memory_is_host_memory and resource in memory:
        return "memory"
    return _RESOURCES.get(resource, "unknown")


_PLACES = {
    planner_pb2.PLACEMENT_DEVICE: "on the device",
    planner_pb2.PLACEMENT_HOST: "in host memory",
    planner_pb2.PLACEMENT_DISK: "on disk",
}
_CODECS = {planner_pb2.CODEC_INT8: " as int8", planner_pb2.CODEC_NF4: " as NF4"}


def store_place(store: planner_pb2.Store) -> str:
    """ "in host memory as int8"; "nowhere" for what is computed again."""
    return _PLACES.get(store.placement, "nowhere") + _CODECS.get(store.codec, "")


_DISK_KINDS = {
    profiler_pb2.DISK_KIND_NVME: "NVMe",
    profiler_pb2.DISK_KIND_SOLID_STATE: "solid state",
    profiler_pb2.DISK_KIND_ROTATIONAL: "rotational",
    profiler_pb2.DISK_KIND_VIRTUAL: "virtual",
    profiler_pb2.DISK_KIND_MEMORY: "in memory",
    profiler_pb2.DISK_KIND_NETWORK: "network",
}


def disk_kind_name(kind: profiler_pb2.DiskKind) -> str:
    """ "NVMe", "network", ..."""
    return _DISK_KINDS.get(kind, "unknown kind")
