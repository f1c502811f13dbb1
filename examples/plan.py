"""Asks a planner which tier fits a card, with the generated client.

elite up                                  # in another terminal
python examples/plan.py 127.0.0.1:50052 qwen2.5-1.5b rtx-3090
"""

from __future__ import annotations

import sys

import grpc

from elite.planner.v1 import planner_pb2, planner_pb2_grpc


def main() -> int:
    """Prints the chosen tier and what it costs."""
    address, model_id, gpu_id = sys.argv[1:]
    request = planner_pb2.PlanRequest(
        model=planner_pb2.ModelReference(model_id=model_id),
        machine=planner_pb2.Machine(
            hypothetical=planner_pb2.HypotheticalMachine(
                gpu_id=gpu_id, host_memory_bytes=64 * 1024**3
            )
        ),
    )
    with grpc.insecure_channel(address) as channel:
        planner = planner_pb2_grpc.PlannerServiceStub(channel)
        answer = planner.Plan(request, timeout=10)
    if not answer.HasField("chosen"):
        print("no tier fits:", answer.tiers[0].remedy)
        return 1
    plan = answer.chosen
    print(f"tier {plan.tier}: {plan.context_tokens} + {plan.target_tokens} tokens")
    print(
        f"GPU {plan.gpu_memory.total_bytes / 1e9:.2f} GB of {answer.budget.gpu_bytes / 1e9:.2f} GB"
    )
    print(f"one step takes {plan.step_seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
