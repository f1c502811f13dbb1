"""The machine a plan is for, reduced to what the formulas read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.planner.attention_kernels import card_kernels
from services.planner.gpus import GpuCard, gpu_cards
from services.planner.rates import Rates, single_rates
from services.planner.tables import table

_GIBIBYTE = 2**30
DISK_NOTE = (
    "the disk's rates are table figures for a consumer NVMe drive; `elite profile --stress` "
    "measures them"
)


class DeviceKind(Enum):
    """What computes."""

    CUDA = "cuda"
    CPU = "cpu"


class ComputeDtype(Enum):
    """Dtype of activations, adapters and unquantised weights."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is ComputeDtype.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class Machine:
    """One device with its host. `gpu_safe_bytes` is for tensors: the runtime is taken off.

    Where `shared_memory` is true the device's memory is the host's, and both safe figures describe
    the one pool. `disk_free_bytes` is 0 when the disk is not known. attention_kernels: the fused
    ones that work, the fastest first. has_workspaces: whether a GPU's kernels run, which take
    memory of their own; fake tensors have none.
    """

    device_name: str
    device_kind: DeviceKind
    device_index: int
    shared_memory: bool
    gpu_safe_bytes: int
    host_safe_bytes: int
    process_overhead_bytes: int
    disk_free_bytes: int
    rates: Rates
    dtypes: tuple[ComputeDtype, ...]
    attention_kernels: tuple[str, ...]
    has_bitsandbytes: bool
    power_watts: float = 0.0
    driver_version: str = ""
    torch_version: str = ""
    notes: tuple[str, ...] = ()
    has_workspaces: bool = True

    @property
    def runs_gpu_kernels(self) -> bool:
        """True where attention runs on a GPU, and not under fake tensors."""
        return self.device_kind is DeviceKind.CUDA and self.has_workspaces

    @property
    def has_own_memory(self) -> bool:
        """True for a device whose memory is not the host's."""
        return self.device_kind is DeviceKind.CUDA and not self.shared_memory


def process_overhead_bytes(kind: DeviceKind) -> int:
    """Table figure for a host where nobody measured an empty engine process."""
    return int(table("host")["process_overhead_gibibytes"][kind.value] * _GIBIBYTE)


def run_overhead_bytes() -> int:
    """What a run adds to a process that has loaded its libraries."""
    return int(table("host")["run_overhead_gibibytes"] * _GIBIBYTE)


def process_overhead_note(bytes_taken: int) -> str:
    """What the response says when the table figure is used."""
    return (
        f"host memory of the engine process itself is a table figure ({bytes_taken / 1e9:.1f} GB); "
        f"`elite profile --stress` measures it"
    )


def card_rates(card: GpuCard, disk: tuple[float, float] = (0.0, 0.0)) -> Rates:
    """Rates of a card from the table: dense rate times the achieved share.

    disk: bytes/s read and written; zeros take the table's.
    """
    sixteen_bit = card.sixteen_bit_flops_per_second
    attention = [(1.0, sixteen_bit * card.attention_fraction)]
    matmul = sixteen_bit * card.achieved_fraction
    table_read, table_write = (rate * 1e9 for rate in table("host")["disk_gigabytes_per_second"])
    return Rates(
        by_element_bytes={2: single_rates(matmul, attention, card.memory_bandwidth)},
        memory_bandwidth=card.memory_bandwidth,
        host_to_device=card.host_to_device_pinned,
        device_to_host=card.host_to_device_pinned,
        disk_read=disk[0] or table_read,
        disk_write=disk[1] or table_write,
        spread=(card.lowest_share, card.highest_share),
        launch_seconds=table("host")["operation_launch_microseconds"] * 1e-6,
    )


def card_dtypes(capability: tuple[int, int]) -> tuple[ComputeDtype, ...]:
    """16-bit dtype of a CUDA device: bfloat16 from compute capability 8.0, else float16."""
    return (ComputeDtype.BFLOAT16 if capability >= (8, 0) else ComputeDtype.FLOAT16,)


def card_notes(card: GpuCard) -> tuple[str, ...]:
    """What the response says when a card's figures come from the table."""
    achieved = (
        "its measured share of the dense rate"
        if card.achieved_fraction_known
        else f"{card.achieved_fraction:.0%} of the dense rate, the lowest share in the table"
    )
    return (
        f"{card.name}: memory and rates are card-table figures, not measured; matrix products at "
        f"{achieved}, attention at {card.attention_fraction:.0%} of it",
        f"{card.name}: {card.runtime_overhead_bytes / 1e9:.2f} GB of its memory are set aside for "
        f"the CUDA context, a card-table figure",
    )


def hypothetical_machine(gpu_id: str, host_memory_bytes: int, disk_free_bytes: int) -> Machine:
    """A card of the table in a host of this size, with the software this project pins.

    Raises `KeyError` for an unknown card.
    """
    card = gpu_cards()[gpu_id]
    overhead = process_overhead_bytes(DeviceKind.CUDA)
    notes = [
        *card_notes(card),
        process_overhead_note(overhead),
        "hypothetical machine: the software this project pins is assumed to be installed and to "
        "work on it",
    ]
    if disk_free_bytes:
        notes.append(DISK_NOTE)
    else:
        notes.append("no disk was given: nothing is planned on it, and checkpoints are not checked")
    return Machine(
        device_name=card.name,
        device_kind=DeviceKind.CUDA,
        device_index=0,
        shared_memory=False,
        gpu_safe_bytes=card.visible_bytes - card.runtime_overhead_bytes,
        host_safe_bytes=host_memory_bytes,
        process_overhead_bytes=overhead,
        disk_free_bytes=disk_free_bytes,
        rates=card_rates(card),
        dtypes=card_dtypes(card.compute_capability),
        attention_kernels=card_kernels(card.compute_capability),
        has_bitsandbytes=True,
        power_watts=card.power_limit_watts,
        notes=tuple(notes),
    )
