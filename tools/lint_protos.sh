#!/bin/sh
# lint_protos.sh: buf's rules for the protocol. buf itself would fetch google.rpc; protoc finds it among the packages.
set -eu
cd "$(dirname "$0")/.."
image=$(mktemp --suffix=.binpb)
trap 'rm -f "$image"' EXIT

tools/protoc.sh protos --include_imports --include_source_info --descriptor_set_out="$image" trivec/v1/embedding.proto
# The package `inference` has Triton's wire names, which are not ours to choose.
.venv/bin/buf lint "$image" --config protos/buf.yaml --path trivec/v1
