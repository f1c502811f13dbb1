#!/usr/bin/env bash
# Asks a planner which tier fits a card, with grpcurl and server reflection: no stubs, no protos.
#   elite up                                  # in another terminal
#   examples/plan.sh 127.0.0.1:50052 qwen2.5-1.5b rtx-3090
set -euo pipefail
address=$1 model=$2 gpu=$3
grpcurl -plaintext -d @ "$address" elite.planner.v1.PlannerService/Plan <<REQUEST
{
  "model": {"modelId": "$model"},
  "machine": {"hypothetical": {"gpuId": "$gpu", "hostMemoryBytes": "68719476736"}}
}
REQUEST
