// ./generate.sh; go mod tidy; go run . -planner 127.0.0.1:50052 qwen2.5-1.5b rtx-3090
module elite.example/client

go 1.23

require (
	google.golang.org/grpc v1.73.0
	google.golang.org/protobuf v1.36.6
)
