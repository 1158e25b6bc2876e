#!/bin/sh
# protoc.sh PROTO_DIRECTORY ARGUMENT...: protoc with the pinned plugins and the protos of google.rpc; run by `make`.
set -eu
python=.venv-stubs/bin/python
protos=$1
shift
google=$("$python" -c 'import pathlib, google.rpc.status_pb2 as status; print(pathlib.Path(status.__file__).parents[2])')
PATH=$PWD/.venv-stubs/bin:$PATH exec "$python" -m grpc_tools.protoc -I "$protos" -I "$google" "$@"
