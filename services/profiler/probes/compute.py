"""How fast the device multiplies matrices and moves its own memory, and which kernels it runs.

Shapes: M rows, K inner and N outer width of a matrix product; B batch, S tokens, H heads,
D head dim of attention.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# A projection of a small model over a few thousand tokens on a CPU, of a large one on a GPU.
_MATMUL_SHAPE = {"cpu": (4096, 1024, 2816), "cuda": (8192, 4096, 11008)}
# A product that would take longer gets fewer rows: CPUs without 16-bit instructions emulate them, a
# hundred times slower.
_LONGEST_PRODUCT_SECONDS = 1.0
_FEWEST_ROWS = 64
_LOADING_SIDE = 1024
_STREAM_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}

KERNELS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_math": SDPBackend.MATH,
}
# Those that never hold an S x S matrix.
FUSED_KERNELS = {name: backend for name, backend in KERNELS.items() if name != "sdpa_math"}
_CUDA_ONLY = ("sdpa_efficient", "sdpa_cudnn")


def sixteen_bit_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, or float16 on GPUs that would only emulate it (before compute capability 8.0)."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


def seconds_of(device: torch.device, run: Callable[[], object], repeats: int) -> float:
    """Median seconds of `run` after one warm-up, with the device idle before and after."""
    samples = []
    for _ in range(repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        run()
        synchronise(device)
        samples.append(time.perf_counter() - started)
    return statistics.median(samples[1:])


def synchronise(device: torch.device) -> None:
    """Waits until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def load_kernels(device: torch.device) -> None:
    """Runs what a model runs, once and small: context, kernels and workspaces are there then.

    Products backward too: autograd has threads of its own, and a workspace for each.
    """
    dtype = sixteen_bit_dtype(device)
    square = torch.randn(_LOADING_SIDE, _LOADING_SIDE, device=device, dtype=dtype)
    square.requires_grad_()
    torch.addmm(square[0], square @ square, square).float().softmax(-1).sum().backward()
    for name in FUSED_KERNELS:
        kernel_refusal(name, device, dtype)
    synchronise(device)
    del square
    if device.type == "cuda":
        torch.cuda.empty_cache()


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Achieved rate of one (M, K) by (K, N) product: 2 M K N floating-point operations."""
    rows, inner, outer = _MATMUL_SHAPE[device.type]
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, outer, device=device, dtype=dtype)
    few_seconds = seconds_of(device, lambda: left[:_FEWEST_ROWS] @ right, 1)
    rows_in_time = int(_FEWEST_ROWS * _LONGEST_PRODUCT_SECONDS / few_seconds)
    rows = min(rows, max(_FEWEST_ROWS, rows_in_time))
    seconds = seconds_of(device, lambda: left[:rows] @ right, repeats)
    return 2 * rows * inner * outer / seconds


def memory_bandwidth_bytes_per_second(device: torch.device, repeats: int) -> float:
    """Reading and writing a buffer far larger than any cache: two bytes moved per byte copied."""
    source = torch.ones(_STREAM_BYTES[device.type], device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(device, lambda: target.copy_(source), repeats)


def kernel_refusal(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why an attention kernel does not run forward and backward here; empty when it does.

    torch gives its reasons as warnings and then an error that says nothing.
    """
    if device.type == "cpu" and name in _CUDA_ONLY:
        return "torch has this kernel for CUDA only"
    query, key, value = (
        torch.randn(1, 4, 128, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    with warnings.catch_warnings(record=True) as reasons:
        warnings.simplefilter("always")
        try:
            output = _attend(name, query, key, value)
            output.sum().backward()
            synchronise(device)
        except (ImportError, OSError, RuntimeError) as error:
            said = [str(reason.message) for reason in reasons] + [str(error)]
            first_lines = [text.strip().partition("\n")[0] for text in said if text.strip()]
            return ("; ".join(first_lines) or type(error).__name__)[:1000]
    return ""


def _attend(name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention over (B, H, S, D) by the named kernel and no other."""
    if name == "flash_attn":
        from flash_attn import flash_attn_func  # type: ignore[import-not-found]

        by_token = (tensor.transpose(1, 2) for tensor in (query, key, value))  # (B, S, H, D)
        output: torch.Tensor = flash_attn_func(*by_token, causal=True)
        return output
    with sdpa_kernel(KERNELS[name]):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
