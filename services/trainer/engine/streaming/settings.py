"""What the streaming executor takes from a plan, and what of a plan it cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elite.planner.v1 import planner_pb2
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.streaming.codecs import EXACT, Codec, Int8, Nf4
from services.trainer.engine.streaming.stores import Place

_POLICIES = {
    planner_pb2.CHECKPOINT_POLICY_EVERY_LAYER: False,
    planner_pb2.CHECKPOINT_POLICY_SELECTIVE: True,
}
_PLACES = {
    planner_pb2.PLACEMENT_DEVICE: Place.DEVICE,
    planner_pb2.PLACEMENT_HOST: Place.HOST,
    planner_pb2.PLACEMENT_DISK: Place.DISK,
}
_CODECS: dict[int, Codec] = {
    planner_pb2.CODEC_UNSPECIFIED: EXACT,
    planner_pb2.CODEC_EXACT: EXACT,
    planner_pb2.CODEC_INT8: Int8(),
    planner_pb2.CODEC_NF4: Nf4(),
}


@dataclass(frozen=True, slots=True)
class StreamingSettings:
    """Sizes and places.

    layer_input_interval: every how many layers an input is kept; those between are made again.
    attention_outputs, kept_keys: None where they are made again in backward.
    """

    tokens: int
    target_tokens: int
    chunk_tokens: int
    loss_tile_rows: int
    # Empty: the first that can.
    attention_kernel: str = ""
    batch_size: int = 1
    layer_inputs: Place = Place.DEVICE
    layer_input_codec: Codec = EXACT
    layer_input_interval: int = 1
    hidden_gradients: Place = Place.DEVICE
    key_values: Place = Place.DEVICE
    attention_outputs: Place | None = None
    kept_keys: Place | None = None
    # For page files.
    page_folder: Path | None = None
    # For page files that another process may need to go on with the step.
    journal_folder: Path | None = None

    @classmethod
    def of(
        cls, plan: planner_pb2.Plan, page_folder: Path | None = None,
        journal_folder: Path | None = None,
    ) -> StreamingSettings:  # fmt: skip
        """The plan's. Raises `EngineError` (BAD_MODEL) for what this executor cannot do."""
        execution, streaming = plan.execution, plan.execution.streaming
        problems = [problem for is_problem, problem in _problems(plan) if is_problem]
        if problems:
            problem = f"the streaming executor cannot do plan.{', plan.'.join(problems)}"
            raise EngineError(BAD_MODEL, problem, "take the plan from PlannerService.Plan")
        tokens = int(plan.context_tokens + plan.target_tokens)
        return cls(
            tokens=tokens,
            target_tokens=int(plan.target_tokens),
            chunk_tokens=min(int(streaming.chunk_tokens), tokens),
            loss_tile_rows=int(execution.loss_tile_rows),
            attention_kernel=execution.attention_kernel,
            layer_inputs=_place(execution.layer_inputs),
            layer_input_codec=_CODECS[execution.layer_inputs.codec],
            layer_input_interval=int(execution.layer_input_interval) or 1,
            hidden_gradients=_place(streaming.hidden_gradients),
            key_values=_place(streaming.key_values),
            attention_outputs=_place(streaming.attention_outputs)
            if _POLICIES[execution.checkpoint_policy]
            else None,
            kept_keys=_PLACES.get(streaming.kept_keys.placement),
            page_folder=page_folder,
            journal_folder=journal_folder,
        )

    @property
    def stores(self) -> dict[str, Place]:
        """Places of what is kept, by name."""
        places = {
            "layer inputs": self.layer_inputs,
            "attention outputs": self.attention_outputs,
            "kept keys": self.kept_keys,
            "hidden states": self.hidden_gradients,
            "keys": self.key_values,
        }
        return {name: place for name, place in places.items() if place is not None}

    @property
    def between_layers(self) -> Place:
        """Where inputs made again wait: beside the kept ones, but never on a disk."""
        return Place.DEVICE if self.layer_inputs is Place.DEVICE else self.hidden_gradients


def _place(store: planner_pb2.Store) -> Place:
    return _PLACES[store.placement or planner_pb2.PLACEMENT_DEVICE]


def _problems(plan: planner_pb2.Plan) -> Iterator[tuple[bool, str]]:
    """Whether each thing is asked for, and how it is called."""
    execution, streaming = plan.execution, plan.execution.streaming
    exact_only = {
        "hidden_gradients": streaming.hidden_gradients,
        "key_values": streaming.key_values,
        "attention_outputs": streaming.attention_outputs,
        "kept_keys": streaming.kept_keys,
    }
    for name, store in exact_only.items():
        is_exact = _CODECS.get(store.codec) is EXACT
        written = planner_pb2.Codec.Name(store.codec)
        yield not is_exact, f"execution.streaming.{name}.codec {written}"
    policy = execution.checkpoint_policy
    codec, selective = execution.layer_inputs.codec, _POLICIES.get(policy, False)
    codec_name = planner_pb2.Codec.Name(codec)
    # Outputs of exact queries beside 4-bit ones: gradients point elsewhere (bench.codecs).
    is_off = selective and codec == planner_pb2.CODEC_NF4
    yield is_off, f"execution.layer_inputs.codec {codec_name} with kept attention outputs"
    policy_name = planner_pb2.CheckpointPolicy.Name(policy)
    yield policy not in _POLICIES, f"execution.checkpoint_policy {policy_name}"
    yield plan.lora.dropout > 0, f"lora.dropout {plan.lora.dropout}"
    yield not streaming.chunk_tokens, "execution.streaming.chunk_tokens 0"
    yield not plan.context_tokens, "context_tokens 0"
    yield not plan.target_tokens, "target_tokens 0"
