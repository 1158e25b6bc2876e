"""
write_transcoder_descriptor.py FILE: what Envoy needs to take JSON over HTTP for `trivec.v1.EmbeddingService`, as a
FileDescriptorSet.

The paths stand here and not in the .proto files: they are Envoy's, not the server's.
"""

import sys
from pathlib import Path

from google.api import annotations_pb2, http_pb2
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from trivec.v1 import embedding_pb2

RULES = {
    "Embed": http_pb2.HttpRule(post="/v1/embed", body="*"),
    "Score": http_pb2.HttpRule(post="/v1/score", body="*"),
    "Tokenize": http_pb2.HttpRule(post="/v1/tokenize", body="*"),
    "ListModels": http_pb2.HttpRule(get="/v1/models"),
    "GetModel": http_pb2.HttpRule(get="/v1/models/{model}"),
}


def transcoder_descriptor() -> bytes:
    """The set: each file after those that it imports, with the errors' details, so that they are JSON, too."""
    described = descriptor_pb2.FileDescriptorSet()
    for module in (any_pb2, duration_pb2, status_pb2, error_details_pb2, embedding_pb2):
        module.DESCRIPTOR.CopyToProto(described.file.add())
    (service,) = described.file[-1].service
    for method in service.method:
        if method.name in RULES:
            method.options.Extensions[annotations_pb2.http].CopyFrom(RULES[method.name])
    return described.SerializeToString(deterministic=True)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(transcoder_descriptor())
