#!/bin/sh
# check_stubs.sh: whether the committed stubs are what the .proto files give.
set -eu
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

tools/generate_stubs.sh "$fresh"
if ! diff -r --brief --exclude=__pycache__ --exclude=py.typed "$fresh" protos/python; then
    echo "error: protos/python is not what protos/ gives: run \`make stubs\` and commit the result" >&2
    exit 1
fi
