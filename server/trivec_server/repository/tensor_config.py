"""The `config.pbtxt` of a model that takes tensors -> ModelSettings."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from pathlib import PurePosixPath
from types import MappingProxyType

from inference import model_config_pb2 as pb

from trivec_server.repository.config_fields import TENSOR_FIELDS
from trivec_server.repository.config_reader import ConfigReader, type_name
from trivec_server.repository.parameters import parse_tensor_parameters
from trivec_server.repository.pbtxt import Places, shown
from trivec_server.types import (
    ModelSettings,
    TensorSettings,
    TensorSpec,
    TensorWarmup,
    WarmupData,
    WarmupTensor,
)

TENSOR_BACKEND = "onnxruntime"
"""The backend that models which take tensors run on."""

DATATYPES: Mapping[str, str] = {
    name: "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")
    for name in pb.DataType.keys()  # noqa: SIM118 - not a mapping
    if name != "TYPE_INVALID"
}
"""KServe's name of each data type of `config.pbtxt`."""

VARIABLE = -1

_WARMUP_DATA = {"zero_data": WarmupData.ZERO, "random_data": WarmupData.RANDOM, "input_data_file": WarmupData.FILE}


def read_tensor_config(config: pb.ModelConfig, places: Places, directory_name: str) -> ModelSettings:
    """
    Reads and checks the config of a model that takes tensors. What it leaves out is completed from the model's file
    when that is loaded. `directory_name`: the model's directory, the model's name.

    Raises:
        ConfigError: it asks for what cannot be served.
    """
    reader = ConfigReader(config, places, TENSOR_FIELDS)
    reader.check_name(directory_name)
    parameters = {key: parameter.string_value for key, parameter in config.parameters.items()}
    intra_op_threads = parse_tensor_parameters(parameters, places, reader.warn)
    max_batch_size = config.max_batch_size
    if max_batch_size < 0:
        raise reader.error("max_batch_size", f"{max_batch_size} is below 0: 0 is a model without a batch dimension")
    # Without the block each request is a batch by itself, as in Triton.
    batching = reader.batching(max_batch_size, joins_requests=config.HasField("dynamic_batching"))
    tensors = TensorSettings(
        inputs=_specs(reader, "input", config.input),
        outputs=_specs(reader, "output", config.output),
        model_filename=_filename(reader, "default_model_filename", config.default_model_filename)
        or TensorSettings().model_filename,
        warmups=tuple(_warmup(reader, index) for index in range(len(config.model_warmup))),
        parameters=MappingProxyType(parameters),
    )
    return ModelSettings(
        name=directory_name,
        backend=reader.backend() if config.backend or config.platform else TENSOR_BACKEND,
        version_policy=reader.version_policy(),
        batching=batching,
        instance_groups=reader.instance_groups(),
        intra_op_threads=intra_op_threads,
        tensors=tensors,
        warnings=tuple(reader.warnings),
    )


def _specs(
    reader: ConfigReader, what: str, tensors: Sequence[pb.ModelInput | pb.ModelOutput]
) -> tuple[TensorSpec, ...]:
    specs: dict[str, TensorSpec] = {}
    for index, tensor in enumerate(tensors):
        at = f"{what}[{index}]"
        if not tensor.name:
            raise reader.error(f"{at}.name", f"missing: it is the name of the {what} in the model's file")
        if tensor.name in specs:
            raise reader.error(f"{at}.name", f"{what} {shown(tensor.name)} is given twice")
        specs[tensor.name] = TensorSpec(
            name=tensor.name,
            datatype=_datatype(reader, f"{at}.data_type", tensor.data_type),
            shape=_dims(reader, f"{at}.dims", tensor.dims),
            reshape=_reshape(reader, at, tensor),
            optional=isinstance(tensor, pb.ModelInput) and tensor.optional,
            allow_ragged=isinstance(tensor, pb.ModelInput) and tensor.allow_ragged_batch,
        )
    return tuple(specs.values())


def _datatype(reader: ConfigReader, field: str, data_type: int) -> str:
    datatype = DATATYPES.get(type_name(data_type))
    if datatype is None:
        problem = "missing" if data_type == pb.TYPE_INVALID else f"{data_type} is no data type"
        raise reader.error(field, f"{problem}; it is one of {', '.join(DATATYPES)}")
    return datatype


def _dims(reader: ConfigReader, field: str, dims: Sequence[int]) -> tuple[int, ...]:
    if not dims:
        raise reader.error(field, "empty: a scalar is `dims: [ 1 ]` with `reshape { shape: [ ] }`")
    return _sizes(reader, field, dims)


def _sizes(reader: ConfigReader, field: str, dims: Sequence[int]) -> tuple[int, ...]:
    for index, dim in enumerate(dims):
        if dim < 1 and dim != VARIABLE:
            raise reader.error(f"{field}[{index}]", f"{dim} is neither from 1 nor -1, a dimension that varies")
    return tuple(dims)


def _reshape(reader: ConfigReader, at: str, tensor: pb.ModelInput | pb.ModelOutput) -> tuple[int, ...] | None:
    """The shape that the model has; it must have Triton's relation to `dims`, or elements would change places."""
    if not tensor.HasField("reshape"):
        return None
    shape = _sizes(reader, f"{at}.reshape.shape", tensor.reshape.shape)
    if _sizes_between_variables(shape) != _sizes_between_variables(tensor.dims):
        raise reader.error(
            f"{at}.reshape.shape",
            f"{list(shape)} has not as many elements as dims {list(tensor.dims)}, before, between and after the same "
            "number of -1",
        )
    return None if shape == tuple(tensor.dims) else shape


def _sizes_between_variables(dims: Sequence[int]) -> list[int]:
    bounds = [-1, *(index for index, dim in enumerate(dims) if dim == VARIABLE), len(dims)]
    return [prod(dims[start + 1 : end]) for start, end in pairwise(bounds)]


def _filename(reader: ConfigReader, field: str, name: str) -> str:
    """A path below a directory of the model; "" where none is given."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.isprintable() or "\\" in name:
        raise reader.error(field, f"{shown(name)} is not the path of a file inside its directory")
    return name


def _warmup(reader: ConfigReader, index: int) -> TensorWarmup:
    config, at = reader.config.model_warmup[index], f"model_warmup[{index}]"
    batch_size = reader.positive(f"{at}.batch_size", config.batch_size)
    count = reader.positive(f"{at}.count", config.count)
    if not config.inputs:
        raise reader.error(f"{at}.inputs", "missing: a warm-up needs every input of the model")
    inputs = tuple(
        _warmup_tensor(reader, f'{at}.inputs["{key}"]', key, config.inputs[key]) for key in sorted(config.inputs)
    )
    return TensorWarmup(name=config.name or at, inputs=inputs, batch_size=batch_size, count=count)


def _warmup_tensor(reader: ConfigReader, at: str, name: str, config: pb.ModelWarmup.Input) -> WarmupTensor:
    choice = config.WhichOneof("input_data_type")
    if choice is None:
        raise reader.error(at, "has no data: add `zero_data: true`, `random_data: true` or `input_data_file`")
    for position, dim in enumerate(config.dims):
        if dim < 1:
            problem = f"{dim} is below 1: a warm-up states the size of every dimension"
            raise reader.error(f"{at}.dims[{position}]", problem)
    filename = _filename(reader, f"{at}.input_data_file", config.input_data_file)
    if choice == "input_data_file" and not filename:
        raise reader.error(f"{at}.input_data_file", "empty: it is the name of a file in the model's directory `warmup`")
    return WarmupTensor(
        name=name,
        datatype=_datatype(reader, f"{at}.data_type", config.data_type),
        shape=tuple(config.dims),
        data=_WARMUP_DATA[choice],
        filename=filename,
    )
