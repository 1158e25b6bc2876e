#!/bin/sh
# generate_stubs.sh DIRECTORY: the Python stubs of all .proto files.
set -eu
cd "$(dirname "$0")/.."
target=$1

tools/protoc.sh protos --python_out="$target" --grpc_python_out="$target" --mypy_out="quiet:$target" \
    --mypy_grpc_out="quiet:$target" trivec/v1/embedding.proto
# Only a schema for files: it has no service.
tools/protoc.sh protos --python_out="$target" --mypy_out="quiet:$target" inference/model_config.proto
