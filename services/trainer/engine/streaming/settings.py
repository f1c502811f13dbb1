"""What the streaming executor takes from a plan, and what of a plan it cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from elite.planner.v1 import planner_pb2
from services.trainer.engine.failures import BAD_MODEL, EngineError

_DEVICE = planner_pb2.PLACEMENT_DEVICE
_HOST = planner_pb2.PLACEMENT_HOST
_EXACT = (planner_pb2.CODEC_UNSPECIFIED, planner_pb2.CODEC_EXACT)
_POLICIES = {
    planner_pb2.CHECKPOINT_POLICY_EVERY_LAYER: False,
    planner_pb2.CHECKPOINT_POLICY_SELECTIVE: True,
}


@dataclass(frozen=True, slots=True)
class StreamingSettings:
    """Sizes and places. A store is on the device, or on the host beside it."""

    tokens: int
    target_tokens: int
    chunk_tokens: int
    loss_tile_rows: int
    # Empty: the first that can.
    attention_kernel: str = ""
    keeps_attention_outputs: bool = False
    layer_inputs_on_host: bool = False
    attention_outputs_on_host: bool = False
    hidden_gradients_on_host: bool = False
    batch_size: int = 1

    @classmethod
    def of(cls, plan: planner_pb2.Plan) -> StreamingSettings:
        """The plan's. Raises `EngineError` (BAD_MODEL) for what this executor cannot do."""
        execution, streaming = plan.execution, plan.execution.streaming
        problems = [problem for is_problem, problem in _problems(plan) if is_problem]
        if problems:
            problem = f"the streaming executor cannot do plan.{', plan.'.join(problems)}"
            raise EngineError(BAD_MODEL, problem, "plan again with runnable_only")
        tokens = int(plan.context_tokens + plan.target_tokens)
        return cls(
            tokens=tokens,
            target_tokens=int(plan.target_tokens),
            chunk_tokens=min(int(streaming.chunk_tokens), tokens),
            loss_tile_rows=int(execution.loss_tile_rows),
            attention_kernel=execution.attention_kernel,
            keeps_attention_outputs=_POLICIES[execution.checkpoint_policy],
            layer_inputs_on_host=execution.layer_inputs.placement == _HOST,
            attention_outputs_on_host=streaming.attention_outputs.placement == _HOST,
            hidden_gradients_on_host=streaming.hidden_gradients.placement == _HOST,
        )

    @property
    def uses_host(self) -> bool:
        """Whether any store is beside the device."""
        return (
            self.layer_inputs_on_host
            or (self.attention_outputs_on_host and self.keeps_attention_outputs)
            or self.hidden_gradients_on_host
        )


def _problems(plan: planner_pb2.Plan) -> Iterator[tuple[bool, str]]:
    """Whether each thing is asked for, and how it is called."""
    execution, streaming = plan.execution, plan.execution.streaming
    codec_name, policy_name = planner_pb2.Codec.Name, planner_pb2.CheckpointPolicy.Name
    place_name = planner_pb2.Placement.Name
    stores = {
        "layer_inputs": execution.layer_inputs,
        "streaming.key_values": streaming.key_values,
        "streaming.attention_outputs": streaming.attention_outputs,
        "streaming.hidden_gradients": streaming.hidden_gradients,
    }
    for name, store in stores.items():
        here = (_DEVICE,) if name == "streaming.key_values" else (_DEVICE, _HOST)
        place = store.placement or _DEVICE
        yield place not in here, f"execution.{name}.placement {place_name(place)}"
        yield store.codec not in _EXACT, f"execution.{name}.codec {codec_name(store.codec)}"
    weights = execution.weight_placement
    policy = execution.checkpoint_policy
    interval, heads = execution.layer_input_interval, execution.key_value_head_count
    yield policy not in _POLICIES, f"execution.checkpoint_policy {policy_name(policy)}"
    yield weights not in (0, _DEVICE), f"execution.weight_placement {place_name(weights)}"
    yield interval > 1, f"execution.layer_input_interval {interval}"
    yield heads > 0, f"execution.key_value_head_count {heads}"
    yield plan.lora.dropout > 0, f"lora.dropout {plan.lora.dropout}"
    yield not streaming.chunk_tokens, "execution.streaming.chunk_tokens 0"
