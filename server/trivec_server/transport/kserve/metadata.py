"""What the server and its models are: ServerMetadata and ModelMetadata."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

from inference import grpc_service_pb2 as pb

from trivec_server.repository.normalized_config import normalized_config
from trivec_server.repository.registry import EmbeddingVersion, ServedVersion
from trivec_server.transport.kserve.datatypes import BYTES
from trivec_server.transport.kserve.embed_inputs import TEXT
from trivec_server.transport.kserve.embed_outputs import describe_outputs
from trivec_server.types import TensorSpec

_NAME = "trivec"
_EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)
_SHARED_MEMORY = "system_shared_memory"
_Tensor = pb.ModelMetadataResponse.TensorMetadata


def describe_server(*, allow_shared_memory: bool) -> pb.ServerMetadataResponse:
    """The server's name, version, and the extensions that it has."""
    extensions = (*_EXTENSIONS, _SHARED_MEMORY) if allow_shared_memory else _EXTENSIONS
    return pb.ServerMetadataResponse(name=_NAME, version=_version(), extensions=extensions)


def describe_model(versions: Sequence[ServedVersion]) -> pb.ModelMetadataResponse:
    """The model of some versions, with the inputs and outputs of the newest of them."""
    newest = versions[-1]
    config = normalized_config(newest.loaded)
    response = pb.ModelMetadataResponse(
        name=newest.key.name,
        versions=[str(served.key.version) for served in versions],
        platform=config.platform or config.backend,
    )
    if isinstance(newest, EmbeddingVersion):
        response.inputs.append(_Tensor(name=TEXT, datatype=BYTES, shape=(-1, 1)))
        for name, datatype, shape in describe_outputs(newest.loaded.info):
            response.outputs.append(_Tensor(name=name, datatype=datatype, shape=shape))
        return response
    batch = (-1,) if newest.loaded.settings.batching.max_batch_size else ()
    response.inputs.extend(_tensor(spec, batch) for spec in newest.loaded.inputs)
    response.outputs.extend(_tensor(spec, batch) for spec in newest.loaded.outputs)
    return response


def _tensor(spec: TensorSpec, batch: tuple[int, ...]) -> _Tensor:
    return _Tensor(name=spec.name, datatype=spec.datatype, shape=(*batch, *spec.shape))


@cache
def _version() -> str:
    return version("trivec")
