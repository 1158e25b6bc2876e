#!/bin/sh
# check_breaking.sh REVISION: whether what was made from an earlier commit's protocol still works with this one.
set -eu
cd "$(dirname "$0")/.."
revision=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! git rev-parse --quiet --verify "$revision^{commit}" >/dev/null; then
    echo "error: '$revision' is not a commit or tag; name the one to compare with: make breaking AGAINST=v0.1.0" >&2
    exit 1
fi
git archive "$revision" protos | tar -x -C "$work"
tools/protoc.sh "$work/protos" --include_imports --descriptor_set_out="$work/before.binpb" trivec/v1/embedding.proto
tools/protoc.sh protos --include_imports --include_source_info --descriptor_set_out="$work/now.binpb" \
    trivec/v1/embedding.proto
.venv/bin/buf breaking "$work/now.binpb" --against "$work/before.binpb" --config protos/buf.yaml --path trivec/v1
