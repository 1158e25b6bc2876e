"""The `config.pbtxt` of an embedding model -> ModelSettings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from inference import model_config_pb2 as pb

from trivec_server.repository.config_fields import EMBEDDING_FIELDS, NO_EFFECT
from trivec_server.repository.config_reader import MAX_UINT32, ConfigReader, type_name
from trivec_server.repository.parameters import Parameters, parse_parameters
from trivec_server.repository.pbtxt import Places, shown, suggestion
from trivec_server.types import BatchingSettings, Mode, ModelSettings, Warmup

INPUT_NAME = "text"

_NUMBERS = (pb.TYPE_FP32, pb.TYPE_FP16)
_INDICES = (pb.TYPE_INT64,)


@dataclass(frozen=True, slots=True)
class _Output:
    """What an output may be: its rank, of which all dimensions vary but `last`, where the model has one."""

    mode: Mode
    data_types: tuple[int, ...]
    rank: int
    has_dimension: bool
    allowed: str


_OUTPUTS: Mapping[str, _Output] = {
    "dense": _Output(Mode.DENSE, _NUMBERS, 1, has_dimension=True, allowed="[D], the dimension of the vector"),
    "sparse": _Output(Mode.SPARSE, _NUMBERS, 1, has_dimension=False, allowed="[-1]: the number of entries varies"),
    "multi_vector": _Output(
        Mode.MULTI_VECTOR,
        _NUMBERS,
        2,
        has_dimension=True,
        allowed="[-1, D], tokens and the dimension of each vector",
    ),
    # The names under which ModelInfer gives what varies in length, and ModelConfig returns it.
    "sparse_indptr": _Output(Mode.SPARSE, _INDICES, 1, has_dimension=False, allowed="[-1]"),
    "sparse_indices": _Output(Mode.SPARSE, _INDICES, 1, has_dimension=False, allowed="[-1]"),
    "sparse_values": _Output(Mode.SPARSE, _NUMBERS, 1, has_dimension=False, allowed="[-1]"),
    "multi_vector_offsets": _Output(Mode.MULTI_VECTOR, _INDICES, 1, has_dimension=False, allowed="[-1]"),
}
OUTPUT_NAMES = frozenset(_OUTPUTS)
"""The names that outputs of an embedding model may be declared by."""

_ELSE = 'a model that takes tensors needs backend "onnxruntime", and no manifest.json in its versions'


def read_embedding_config(config: pb.ModelConfig, places: Places, directory_name: str) -> ModelSettings:
    """
    Reads and checks the config of an embedding model. `directory_name`: the model's directory, the model's name.

    Raises:
        ConfigError: it asks for what cannot be served.
    """
    reader = ConfigReader(config, places, EMBEDDING_FIELDS)
    reader.check_name(directory_name)
    parameters = parse_parameters({key: parameter.string_value for key, parameter in config.parameters.items()}, places)
    _check_input(reader)
    dims = _output_dims(reader)
    max_batch_size = _max_batch_size(reader)
    return ModelSettings(
        name=directory_name,
        backend=reader.backend(),
        version_policy=reader.version_policy(),
        batching=reader.batching(max_batch_size, token_budget=parameters.token_budget),
        instance_groups=reader.instance_groups(),
        warmups=tuple(_warmup(reader, index, max_batch_size, parameters) for index in range(len(config.model_warmup))),
        declared_modes=_union(_OUTPUTS[name].mode for name in dims) if dims else None,
        dense_dimension=_known(dims.get("dense")),
        multi_vector_dimension=_known(dims.get("multi_vector")),
        pooling=parameters.pooling,
        precision=parameters.precision,
        max_tokens=parameters.max_tokens,
        query_prefix=parameters.query_prefix,
        passage_prefix=parameters.passage_prefix,
        score_weights=parameters.score_weights,
        intra_op_threads=parameters.intra_op_threads,
        accelerator=_accelerator(reader),
        device_memory_mb=parameters.device_memory_mb,
        worker_process=parameters.worker_process,
        response_cache=config.response_cache.enable,
        warnings=tuple(reader.warnings),
    )


def _accelerator(reader: ConfigReader) -> str | None:
    """The execution accelerator for GPUs; Triton's list, of which one can be had."""
    chosen = None
    for index, entry in enumerate(reader.config.optimization.execution_accelerators.gpu_execution_accelerator):
        field = f"optimization.execution_accelerators.gpu_execution_accelerator[{index}]"
        if entry.name not in GPU_ACCELERATORS:
            raise reader.error(f"{field}.name", f"{shown(entry.name)} is not {' or '.join(GPU_ACCELERATORS)}")
        chosen = entry.name
    return chosen


GPU_ACCELERATORS = ("tensorrt",)
"""Triton's names of the execution accelerators that an engine here can use."""


def _max_batch_size(reader: ConfigReader) -> int:
    size = reader.config.max_batch_size
    if size == 0 and not reader.places.given("max_batch_size"):
        default = BatchingSettings().max_batch_size
        reader.warn("max_batch_size", f"not given: {default} texts are taken as the largest batch")
        return default
    if size < 1:
        raise reader.error("max_batch_size", f"{size} is below 1: embedding models always have a batch dimension")
    return size


def _check_input(reader: ConfigReader) -> None:
    inputs = reader.config.input
    if len(inputs) > 1:
        raise reader.error("input[1]", f"there is only one input of an embedding model, `{INPUT_NAME}`; {_ELSE}")
    for tensor in inputs:
        if tensor.name != INPUT_NAME:
            problem = f"{shown(tensor.name)} is not `{INPUT_NAME}`, the only input of an embedding model; {_ELSE}"
            raise reader.error("input[0].name", problem)
        if tensor.data_type != pb.TYPE_STRING:
            raise reader.error("input[0].data_type", f"{type_name(tensor.data_type)} is not TYPE_STRING")
        if list(tensor.dims) != [1]:
            raise reader.error("input[0].dims", f"{list(tensor.dims)} is not [1], one text for each row of a batch")


def _output_dims(reader: ConfigReader) -> Mapping[str, int]:
    """The declared outputs, each with its last dimension (-1: not stated)."""
    dims: dict[str, int] = {}
    for index, tensor in enumerate(reader.config.output):
        at = f"output[{index}]"
        output = _OUTPUTS.get(tensor.name)
        if output is None:
            known = f"; an embedding model has dense, sparse and multi_vector; {_ELSE}"
            near = suggestion(tensor.name, _OUTPUTS) or known
            raise reader.error(f"{at}.name", f"unknown output {shown(tensor.name)}{near}")
        if tensor.name in dims:
            raise reader.error(f"{at}.name", f"output {shown(tensor.name)} is given twice")
        if tensor.data_type not in output.data_types:
            allowed = " or ".join(map(type_name, output.data_types))
            raise reader.error(f"{at}.data_type", f"{type_name(tensor.data_type)} is not {allowed}")
        if tensor.data_type == pb.TYPE_FP16:
            reader.warn(f"{at}.data_type", f"TYPE_FP16 {NO_EFFECT}: each request chooses its encoding")
        shape = list(tensor.dims)
        last = shape[-1] if shape else 0
        sound = len(shape) == output.rank and all(dim == -1 for dim in shape[:-1])
        if not sound or not (last == -1 or (output.has_dimension and 0 < last <= MAX_UINT32)):
            raise reader.error(f"{at}.dims", f"{shape} is not {output.allowed}")
        dims[tensor.name] = last
    return dims


def _warmup(reader: ConfigReader, index: int, max_batch_size: int, parameters: Parameters) -> Warmup:
    config, at = reader.config.model_warmup[index], f"model_warmup[{index}]"
    tokens = min(Warmup(name="").tokens, parameters.max_tokens or Warmup(name="").tokens)
    for key, entry in config.inputs.items():
        field = f'{at}.inputs["{key}"]'
        if key != INPUT_NAME:
            raise reader.error(field, f"the only input is `{INPUT_NAME}`")
        if entry.data_type != pb.TYPE_STRING:
            raise reader.error(f"{field}.data_type", f"{type_name(entry.data_type)} is not TYPE_STRING")
        if len(entry.dims) != 1 or entry.dims[0] < 1:
            raise reader.error(f"{field}.dims", f"{list(entry.dims)} is not [n], a text of n tokens")
        if parameters.max_tokens is not None and entry.dims[0] > parameters.max_tokens:
            problem = f"{entry.dims[0]} tokens exceed max_tokens {parameters.max_tokens}"
            raise reader.error(f"{field}.dims", problem)
        # [1] is how Triton declares one text: it says nothing about its length.
        tokens = entry.dims[0] if entry.dims[0] > 1 else tokens
    batch_size = reader.positive(f"{at}.batch_size", config.batch_size)
    if batch_size > max_batch_size:
        raise reader.error(f"{at}.batch_size", f"{batch_size} exceeds max_batch_size {max_batch_size}")
    count = reader.positive(f"{at}.count", config.count)
    return Warmup(name=config.name or at, batch_size=batch_size, tokens=tokens, count=count)


def _known(dimension: int | None) -> int | None:
    return None if dimension == -1 else dimension


def _union(modes: Iterable[Mode]) -> Mode:
    union = Mode(0)
    for mode in modes:
        union |= mode
    return union
