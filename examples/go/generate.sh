#!/usr/bin/env bash
# Writes the Go stubs below this folder, or below the folder that is given.
# Needs protoc (with its include folder) and two plugins. On Debian:
#      apt-get install protobuf-compiler libprotobuf-dev protoc-gen-go protoc-gen-go-grpc
# or:  go install google.golang.org/protobuf/cmd/protoc-gen-go@latest
#      go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@latest
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "${1:-$here}" && pwd)
module=elite.example/client
options=(--go_out="$target" --go_opt=module="$module"
         --go-grpc_out="$target" --go-grpc_opt=module="$module")

cd "$here/../../protos"
# The protos have no go_package: M options say which Go package each of them becomes.
for proto in elite/*/v1/*.proto; do
    name=$(basename "$proto" .proto)
    package="M$proto=$module/$(dirname "$proto");${name}v1"
    options+=(--go_opt="$package" --go-grpc_opt="$package")
done
protoc "${options[@]}" elite/*/v1/*.proto
