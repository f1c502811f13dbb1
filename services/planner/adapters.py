"""What a run trains: adapters on which linears, in which dtype, with how much dropout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Adapters:
    """Settings of the adapters. No target modules stands for all linears, rank 0 for the tier's."""

    target_modules: tuple[str, ...] = ()
    float32: bool = False
    dropout: float = 0.0
    rank: int = 0

    def targets(self, linear: str) -> bool:
        """True when this linear carries an adapter."""
        return not self.target_modules or linear in self.target_modules

    def element_bytes(self, compute_element_bytes: int) -> int:
        """Bytes of one adapter parameter."""
        return 4 if self.float32 else compute_element_bytes

    def share_inputs(self, compute_element_bytes: int) -> bool:
        """True when adapters read the linears' inputs as they are, without a cast or dropout.

        Only then does the streaming executor add their products in place.
        """
        return (
            self.element_bytes(compute_element_bytes) == compute_element_bytes and not self.dropout
        )


EVERY_LINEAR = Adapters()
