"""Section `rates`: matrix products, copies between host and device, attention by kernel.

Also the stress test's rates by shape, from which the planner predicts step times.

Shapes: N side of a square product; B batch 1, S queries, K keys, H query heads, G KV heads, D head
dim of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from google.protobuf import json_format

from bench import gpu_device
from bench.gpu_settings import NO_CUDA, Settings
from elite.profiler.v1 import profiler_pb2
from services.common.engine_process import KEY_CHUNKS
from services.profiler.probes import compute, launches, shapes
from services.profiler.probes.interconnect import transfer_bytes_per_second
from services.trainer.engine.streaming.kernels import KERNELS, Heads, Kernel

_SIDES = {False: (4096, 8192, 16384), True: (256,)}
# Products without a pause between, so that starting them is not what is measured.
_PRODUCTS = 8
_EFFORT = {False: shapes.Effort(5, 0.5, 4.0), True: shapes.Effort(3, 0.01, 0.1)}
_REPEATS = 5
_COPY_BYTES, _COPIES = 256 * 2**20, 4
# A chunk's queries against the keys before it, and against as many as one block of backward has.
_ATTENTION_TOKENS = {False: (8192, 65536), True: (64, 128)}
_HEADS = (12, 2, 128)
_TRANSFERS = ("host_to_device", "device_to_host", "both_at_once")


def measure(settings: Settings, number: int) -> dict[str, Any]:
    """All rates; copies and the stress test's are null without CUDA."""
    del number
    device = gpu_device.open_device()
    dtype = compute.sixteen_bit_dtype(device)
    on_cuda = device.type == "cuda"
    products = list(_products(device, dtype, settings.fast))
    fastest = max(one["flops_per_second"] for one in products)
    found: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "matmul": products,
        "matmul_peak_flops_per_second": fastest,
        "copies_bytes_per_second": _copies(device) if on_cuda else None,
        "block_attention": [_attention(kernel, device, dtype, settings.fast) for kernel in KERNELS],
    }
    settings.note(found)
    measurements = _measurements(device, dtype) if on_cuda and not settings.fast else None
    found["measurements"] = measurements
    if measurements:
        # Short ones, before the card's power limit slows it down.
        shapes_of_layers = measurements["matmul_rates"]
        rates = [measurements["matmul_16bit_flops_per_second"], fastest]
        rates += [one["flops_per_second"] for one in shapes_of_layers]
        found["matmul_peak_flops_per_second"] = max(rates)
    reasons = {"copies_bytes_per_second": NO_CUDA, "measurements": NO_CUDA}
    return found | {"not_measured": {} if on_cuda else reasons}


def _products(device: torch.device, dtype: torch.dtype, fast: bool) -> Iterator[dict[str, float]]:
    """2 N^3 operations a product, of random numbers: zeros would run at a higher clock."""
    for side in _SIDES[fast]:
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

        def products(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            for _ in range(_PRODUCTS):
                _ = left @ right

        seconds = shapes.median_seconds(device, products, _EFFORT[fast])
        yield {"side": side, "flops_per_second": _PRODUCTS * 2 * side**3 / seconds}


def _copies(device: torch.device) -> dict[str, Any]:
    alone = {
        name: transfer_bytes_per_second(
            device, to_device=name == "host_to_device", pinned=True, repeats=_REPEATS
        )
        for name in _TRANSFERS[:2]
    }
    return alone | {"both_at_once": _both_ways(device)}


def _both_ways(device: torch.device) -> float:
    """Bytes a second of both directions together, on a stream each."""
    hosts = [torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    there = [torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2)]
    streams = [torch.cuda.Stream(device) for _ in range(2)]

    def copies() -> None:
        for _ in range(_COPIES):
            with torch.cuda.stream(streams[0]):
                there[0].copy_(hosts[0], non_blocking=True)
            with torch.cuda.stream(streams[1]):
                hosts[1].copy_(there[1], non_blocking=True)

    return 2 * _COPIES * _COPY_BYTES / compute.seconds_of(device, copies, _REPEATS)


def _attention(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, fast: bool
) -> dict[str, Any]:
    """A kernel's rates as the streaming executor calls it, or why it cannot run here.

    Forward: a chunk over many earlier keys. Backward: a chunk over as many keys, 2.5 times the
    operations of its forward. workspace_bytes: what backward takes beside what it returns.
    """
    query_heads, kv_heads, head_dim = _HEADS
    heads = Heads(device, dtype, query_heads, kv_heads, head_dim)
    name = {"kernel": kernel.name, "implementation": type(kernel).__name__}
    refusal = kernel.refusal(heads)
    if refusal:
        return name | {"forward": None, "backward": None, "reason": refusal}
    try:
        return name | _attention_rates(kernel, heads, fast)
    except RuntimeError as error:
        first_line = str(error).strip().partition("\n")[0]
        return name | {"forward": None, "backward": None, "reason": first_line}


def _attention_rates(kernel: Kernel, heads: Heads, fast: bool) -> dict[str, Any]:
    tokens, keys = _ATTENTION_TOKENS[fast]
    block = tokens * (1 if kernel.repeats_heads else KEY_CHUNKS[heads.device.type])
    scale = heads.head_dim**-0.5
    query, gradient = (_random(heads, heads.query_heads, tokens) for _ in range(2))
    key, value = (_random(heads, heads.key_value_heads, max(keys, block)) for _ in range(2))
    own_key, own_value = (tensor[:, :, :block] for tensor in (key, value))
    output, lse = kernel.forward(query, own_key, own_value, False, scale)
    operations = 4.0 * tokens * heads.query_heads * heads.head_dim

    def forward() -> object:
        return kernel.forward(query, key, value, False, scale)

    def backward() -> Sequence[torch.Tensor]:
        return kernel.backward(gradient, query, own_key, own_value, output, lse, False, scale)

    seconds = [shapes.median_seconds(heads.device, run, _EFFORT[fast]) for run in
               (forward, backward)]  # fmt: skip
    return {
        "query_tokens": tokens, "key_tokens": {"forward": key.shape[2], "backward": block},
        "forward": operations * key.shape[2] / seconds[0],
        "backward": 2.5 * operations * block / seconds[1],
        "workspace_bytes": _workspace_bytes(backward, heads.device),
    }  # fmt: skip


def _workspace_bytes(run: Callable[[], Sequence[torch.Tensor]], device: torch.device) -> int | None:
    """What a run takes at most beside what it returns; None on a CPU."""
    gpu_device.reset_peaks(device)
    before = gpu_device.read_peaks(device)
    returned = sum(tensor.nbytes for tensor in run())
    after = gpu_device.read_peaks(device)
    if before is None or after is None:
        return None
    return after.allocated_bytes - before.allocated_bytes - returned


def _random(heads: Heads, count: int, tokens: int) -> torch.Tensor:
    """(B, H or G, S or K, D), token by token as the executor has them."""
    shape = (1, tokens, count, heads.head_dim)
    return torch.randn(shape, device=heads.device, dtype=heads.dtype).transpose(1, 2)


def _measurements(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of a stress test that step times are predicted from, as protobuf JSON."""
    measured = profiler_pb2.DeviceMeasurements(
        matmul_16bit_flops_per_second=compute.matmul_flops_per_second(device, dtype, _REPEATS),
        memory_bandwidth_bytes_per_second=compute.memory_bandwidth_bytes_per_second(
            device, _REPEATS
        ),
        matmul_rates=shapes.matmul_rates(device, dtype, quick=True),
        attention_rates=shapes.attention_rates(device, dtype, quick=False),
        block_attention_rates=shapes.attention_rates(device, dtype, quick=False, causal=False),
        elementwise_rates=shapes.elementwise_rates(device, dtype, quick=True),
        operation_launch_seconds=launches.operation_launch_seconds(device),
    )
    for to_device, name in ((True, "host_to_device"), (False, "device_to_host")):
        rate = transfer_bytes_per_second(device, to_device=to_device, pinned=True, repeats=_REPEATS)
        setattr(measured, f"{name}_pinned_bytes_per_second", rate)
    found: dict[str, Any] = json_format.MessageToDict(measured, preserving_proto_field_name=True)
    return found
