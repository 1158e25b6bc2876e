"""What is sent: every RPC of both services, good requests to begin with, and the words that get somewhere."""

from dataclasses import dataclass, field

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb

from tests.fuzz.wire_messages import Words
from tests.rpc import inference_server as infer

REGION = "trivec-fuzz"
"""The shared memory that the requests may use."""
REGION_BYTES = 64
KEPT = "kept"
"""The name that it is registered under from the beginning."""

_MODELS = ("small", "floats", "pair", "bytes", "", "absent")
_PARAMETERS = (
    *("modes", "encoding", "input_type", "truncation", "max_tokens", "sparse_top_k", "sparse_min_weight"),
    *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "triton_enable_empty_final_response"),
    *(
        "shared_memory_region",
        "shared_memory_offset",
        "shared_memory_byte_size",
        "binary_data_output",
        "classification",
    ),
    *("headers", "triton_x", "config", "file:1/model.onnx", "file:../x", "unload_dependents"),
)
_SETTINGS = (
    *("log_info", "log_warning", "log_error", "log_verbose_level", "log_format", "log_file"),
    *("trace_level", "trace_rate", "trace_count", "log_frequency", "trace_file", "trace_mode"),
)
WORDS = Words(
    {
        "model": _MODELS,
        "model_name": _MODELS,
        "name": (*_MODELS, "text", "x", "y", "dense", "sparse_values", "multi_vector", "INPUT0", "OUTPUT0", "region"),
        "model_version": ("", "1", "01", "2", "-1", "9" * 30, "1.0"),
        "datatype": ("BYTES", "FP32", "FP16", "BF16", "INT32", "INT64", "BOOL", "UINT8", "FP64", "STRING", "fp32"),
        "texts": ("w10", "w10 w11 w12 w13", "w999 " * 62),
        "query": ("w10", "w10 w11 w12 w13"),
        "passages": ("w10", "w10 w11 w12 w13", "w999 " * 62),
        "string_param": (
            *("dense", "dense,sparse", "hybrid", KEPT, "query", "left", "float16", "ISO8601", "region", "{}"),
            *(
                '{"backend":"scripted"}',
                '{"backend":"scripted","max_batch_size":-1}',
                '{"name":"other"}',
                "[]",
                "1",
                "{",
            ),
        ),
        "ParametersEntry": _PARAMETERS,
        "SettingsEntry": _SETTINGS,
        "value": ("TIMESTAMPS", "TENSORS", "OFF", "0", "-1", "1000", "9" * 30),
        "key": (f"/{REGION}", REGION, "/absent", "../etc/passwd", "/", "/a/b"),
        "repository_name": ("", "other"),
        "request_id": ("", "a", "x" * 128, "x" * 129, "é"),
        "id": ("", "a", "x" * 300),
    }
)


@dataclass(frozen=True)
class Method:
    """One RPC. `path` as HTTP/2 has it; `samples` are good requests."""

    path: str
    message: Descriptor = field(repr=False)
    samples: tuple[bytes, ...] = field(repr=False)
    is_stream: bool = False


def _sample(*messages: Message) -> tuple[bytes, ...]:
    return tuple(message.SerializeToString() for message in messages)


_INT8, _BITS, _ROWS = pb.VECTOR_ENCODING_INT8, pb.VECTOR_ENCODING_BINARY, pb.MODE_MULTI_VECTOR
_EMBED = (
    pb.EmbedRequest(texts=["w10", "w11 w12"]),
    pb.EmbedRequest(
        model="small", version=1, texts=["w10"], modes=[pb.MODE_HYBRID], encoding=_INT8, return_tokens=True
    ),
    pb.EmbedRequest(token_ids=[pb.TokenIds(ids=[0, 10, 2])], modes=[pb.MODE_SPARSE], sparse_top_k=1),
    pb.EmbedRequest(texts=["w10 " * 100], truncation=pb.TRUNCATION_RIGHT, max_tokens=8, modes=[_ROWS], encoding=_BITS),
)
_INFER = (
    infer.embed("w10", "w11 w12"),
    infer.embed(
        "w10", outputs=["dense", "multi_vector"], truncation="right", max_tokens=4, priority=1, timeout=100_000
    ),
    infer.floats([1, 2, 3], [4, 5, 6], outputs=["total"]),
    infer.request(
        "pair",
        infer.given("INPUT0", "INT32", (1, 4), kserve.InferTensorContents(int_contents=[1, 2, 3, 4])),
        infer.given("INPUT1", "INT32", (1, 4), kserve.InferTensorContents(int_contents=[1, 2, 3, 4])),
    ),
    infer.embed("w10", modes="hybrid", encoding="float16", sparse_top_k=2, sparse_min_weight=0.1, sequence_id=0),
    infer.request(
        "floats",
        infer.given("x", "FP32", (1, 4), kserve.InferTensorContents(fp32_contents=[1, 2, 3, 4])),
        outputs=[infer.wanted("same", classification=2), "batch_rows"],
        about={"timeout": 1, "priority": 1, "headers": "a"},
    ),
    infer.request("bytes", infer.given("x", "BYTES", (1, 2)), raw=[infer.elements("a", "b")]),
    infer.request(
        "floats",
        infer.given(
            "x", "FP32", (1, 4), shared_memory_region=KEPT, shared_memory_byte_size=16, shared_memory_offset=16
        ),
        outputs=[infer.wanted("same", shared_memory_region=KEPT, shared_memory_byte_size=16)],
    ),
)
_Parameter = kserve.ModelRepositoryParameter
_GOOD: dict[str, tuple[Message, ...]] = {
    "Embed": _EMBED,
    "EmbedStream": tuple(
        pb.EmbedStreamRequest(id=str(number), request=request, chunk_bytes=4096 * number)
        for number, request in enumerate(_EMBED)
    ),
    "Score": (
        pb.ScoreRequest(query="w10", passages=["w10", "w11 w12"]),
        pb.ScoreRequest(query="w10", passages=["w10"], weights=pb.ScoreWeights(dense=1), top_k=1, max_tokens=8),
    ),
    "Tokenize": (pb.TokenizeRequest(texts=["w10", "w11 w12"], truncation=pb.TRUNCATION_LEFT, max_tokens=3),),
    "GetModel": (pb.GetModelRequest(model="small", version=1),),
    "ModelInfer": _INFER,
    "ModelStreamInfer": _INFER,
    "SystemSharedMemoryRegister": (
        kserve.SystemSharedMemoryRegisterRequest(name="region", key=f"/{REGION}", byte_size=REGION_BYTES),
    ),
    "SystemSharedMemoryUnregister": (kserve.SystemSharedMemoryUnregisterRequest(name="region"),),
    "SystemSharedMemoryStatus": (kserve.SystemSharedMemoryStatusRequest(name=KEPT),),
    "ModelReady": (kserve.ModelReadyRequest(name="small", version="1"),),
    "ModelMetadata": (kserve.ModelMetadataRequest(name="floats"), kserve.ModelMetadataRequest(name="small")),
    "ModelConfig": (kserve.ModelConfigRequest(name="floats"), kserve.ModelConfigRequest(name="small", version="1")),
    "ModelStatistics": (kserve.ModelStatisticsRequest(name="small"),),
    "RepositoryModelLoad": (
        kserve.RepositoryModelLoadRequest(model_name="small"),
        kserve.RepositoryModelLoadRequest(
            model_name="small", parameters={"config": _Parameter(string_param='{"backend": "scripted"}')}
        ),
        kserve.RepositoryModelLoadRequest(
            model_name="files",
            parameters={
                "config": _Parameter(string_param='{"backend": "scripted"}'),
                "file:1/manifest.json": _Parameter(bytes_param=b"{}"),
            },
        ),
    ),
    "RepositoryModelUnload": (kserve.RepositoryModelUnloadRequest(model_name="small"),),
    "LogSettings": (
        kserve.LogSettingsRequest(settings={"log_info": kserve.LogSettingsRequest.SettingValue(bool_param=True)}),
    ),
    "TraceSetting": (
        kserve.TraceSettingRequest(settings={"trace_rate": kserve.TraceSettingRequest.SettingValue(value=["5"])}),
    ),
}


def _methods() -> tuple[Method, ...]:
    services = (*pb.DESCRIPTOR.services_by_name.values(), *kserve.DESCRIPTOR.services_by_name.values())
    return tuple(
        Method(
            path=f"/{service.full_name}/{method.name}",
            message=method.input_type,
            samples=_sample(*_GOOD.get(method.name, ())) or (b"",),
            is_stream=method.client_streaming,
        )
        for service in services
        for method in service.methods
    )


METHODS = _methods()
"""All of them."""
