#!/bin/sh
# generate_stubs.sh DIRECTORY: the Python stubs of all .proto files.
set -eu
cd "$(dirname "$0")/.."
target=$1

tools/protoc.sh protos --python_out="$target" --grpc_python_out="$target" --mypy_out="quiet:$target" \
    --mypy_grpc_out="quiet:$target" trivec/v1/embedding.proto
# Services of this package are registered by name: no stubs of clients and servicers.
tools/protoc.sh protos --python_out="$target" --mypy_out="quiet:$target" inference/model_config.proto \
    inference/grpc_service.proto
