"""
What ModelConfig returns: the config of a version as it is in effect, completed as Triton completes one.

Compared with what a Triton server returns for the same config. Read again, it gives the same settings.
"""

import re
from collections.abc import Iterable, Sequence

from inference import model_config_pb2 as pb

from trivec_server.backends.hardware import nvidia_gpu_count
from trivec_server.repository.embedding_config import INPUT_NAME
from trivec_server.repository.loading import LoadedVersion
from trivec_server.repository.parameters import render_parameters
from trivec_server.repository.tensor_config import DATATYPES
from trivec_server.repository.tensor_loading import LoadedTensors
from trivec_server.types import (
    BatchingSettings,
    InstanceGroup,
    InstanceKind,
    Mode,
    ModelSettings,
    QueuePolicy,
    TensorSpec,
    TensorWarmup,
    TimeoutAction,
    VersionPolicy,
    Warmup,
    WarmupData,
)

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx"}
_TYPES = {datatype: pb.DataType.Value(name) for name, datatype in DATATYPES.items()}
_KINDS = {InstanceKind.GPU: pb.ModelInstanceGroup.KIND_GPU, InstanceKind.CPU: pb.ModelInstanceGroup.KIND_CPU}
_TIMEOUT_ACTIONS = {
    TimeoutAction.REJECT: pb.ModelQueuePolicy.REJECT,
    TimeoutAction.DELAY: pb.ModelQueuePolicy.DELAY,
}


def normalized_config(loaded: LoadedVersion | LoadedTensors) -> pb.ModelConfig:
    """The config of a version that was loaded."""
    settings = loaded.settings
    config = pb.ModelConfig(
        name=loaded.key.name,
        version_policy=_version_policy(settings.version_policy),
        max_batch_size=settings.batching.max_batch_size,
        instance_group=_instance_groups(settings, loaded.key.name, loaded.info.device),
        dynamic_batching=_dynamic_batching(settings.batching) if settings.batching.joins_requests else None,
        parameters={key: pb.ModelParameter(string_value=text) for key, text in render_parameters(settings).items()},
        backend=loaded.info.engine,
    )
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    if settings.response_cache:
        config.response_cache.enable = True
    if isinstance(loaded, LoadedTensors):
        _describe_tensors(config, loaded)
    else:
        _describe_embeddings(config, loaded)
    return config


def _embedding_outputs(modes: Mode, dense_dimension: int, multi_vector_dimension: int) -> tuple[TensorSpec, ...]:
    """What an embedding model gives, without the batch dimension: sparse vectors and multi-vectors vary in length."""
    outputs: list[TensorSpec] = []
    if Mode.DENSE in modes:
        outputs.append(TensorSpec(name="dense", datatype="FP32", shape=(dense_dimension,)))
    if Mode.SPARSE in modes:
        outputs += [
            TensorSpec(name="sparse_indptr", datatype="INT64", shape=(-1,)),
            TensorSpec(name="sparse_indices", datatype="INT64", shape=(-1,)),
            TensorSpec(name="sparse_values", datatype="FP32", shape=(-1,)),
        ]
    if Mode.MULTI_VECTOR in modes:
        outputs += [
            TensorSpec(name="multi_vector_offsets", datatype="INT64", shape=(-1,)),
            TensorSpec(name="multi_vector", datatype="FP32", shape=(-1, multi_vector_dimension)),
        ]
    return tuple(outputs)


def _describe_embeddings(config: pb.ModelConfig, loaded: LoadedVersion) -> None:
    info = loaded.info
    outputs = _embedding_outputs(info.modes, info.dense_dimension, info.multi_vector_dimension)
    config.input.append(_input(TensorSpec(name=INPUT_NAME, datatype="BYTES", shape=(1,))))
    config.output.extend(map(_output, outputs))
    config.model_warmup.extend(map(_warmup, loaded.settings.warmups))
    if loaded.settings.accelerator is not None:
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(name=loaded.settings.accelerator)


def _describe_tensors(config: pb.ModelConfig, loaded: LoadedTensors) -> None:
    config.platform = _PLATFORMS.get(loaded.info.engine, "")
    batched = config.max_batch_size > 0
    config.input.extend(_input(spec, batched=batched) for spec in loaded.inputs)
    config.output.extend(_output(spec, batched=batched) for spec in loaded.outputs)
    if loaded.settings.tensors is not None:
        config.default_model_filename = loaded.settings.tensors.model_filename
        config.model_warmup.extend(map(_tensor_warmup, loaded.settings.tensors.warmups))


def _input(spec: TensorSpec, *, batched: bool = True) -> pb.ModelInput:
    return pb.ModelInput(
        name=spec.name,
        data_type=_TYPES[spec.datatype],
        dims=spec.shape,
        reshape=_reshape(spec, batched=batched),
        optional=spec.optional,
        allow_ragged_batch=spec.allow_ragged,
    )


def _output(spec: TensorSpec, *, batched: bool = True) -> pb.ModelOutput:
    return pb.ModelOutput(
        name=spec.name,
        data_type=_TYPES[spec.datatype],
        dims=spec.shape,
        reshape=_reshape(spec, batched=batched),
    )


def _reshape(spec: TensorSpec, *, batched: bool) -> pb.ModelTensorReshape | None:
    # Triton allows no empty shape without a batch dimension; read again, the file says that it is a scalar.
    if spec.reshape is None or not (spec.reshape or batched):
        return None
    return pb.ModelTensorReshape(shape=spec.reshape)


def _version_policy(policy: VersionPolicy) -> pb.ModelVersionPolicy:
    message = pb.ModelVersionPolicy()
    if policy.specific is not None:
        message.specific.versions.extend(policy.specific)
    elif policy.latest is not None:
        message.latest.num_versions = policy.latest
    else:
        message.all.SetInParent()
    return message


def _instance_groups(settings: ModelSettings, name: str, device: str) -> Iterable[pb.ModelInstanceGroup]:
    """Each with a name and what KIND_AUTO came to be."""
    groups = settings.instance_groups
    for index, group in enumerate(groups):
        gpus = _gpus(group, device)
        yield pb.ModelInstanceGroup(
            # Triton's name for the group that it adds where there is none.
            name=name if groups == (InstanceGroup(),) else f"{name}_{index}",
            kind=_KINDS[InstanceKind.GPU if gpus else InstanceKind.CPU],
            count=group.count,
            gpus=gpus,
        )


def _gpus(group: InstanceGroup, device: str) -> Sequence[int]:
    if group.kind is InstanceKind.CPU or "cuda" not in device:
        return ()
    if group.gpus:
        return group.gpus
    if group.kind is InstanceKind.GPU:
        return range(nvidia_gpu_count())
    return [int(found) for found in re.findall(r"cuda:(\d+)", device)][:1]


def _dynamic_batching(batching: BatchingSettings) -> pb.ModelDynamicBatching:
    message = pb.ModelDynamicBatching(
        preferred_batch_size=batching.preferred_batch_sizes or [batching.max_batch_size][: batching.max_batch_size],
        max_queue_delay_microseconds=batching.max_queue_delay_us,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
    )
    if batching.queue_policy != QueuePolicy():
        message.default_queue_policy.CopyFrom(_queue_policy(batching.queue_policy))
    for level, policy in batching.priority_queue_policies.items():
        message.priority_queue_policy[level].CopyFrom(_queue_policy(policy))
    return message


def _queue_policy(policy: QueuePolicy) -> pb.ModelQueuePolicy:
    return pb.ModelQueuePolicy(
        timeout_action=_TIMEOUT_ACTIONS[policy.timeout_action],
        default_timeout_microseconds=policy.timeout_us,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _warmup(warmup: Warmup) -> pb.ModelWarmup:
    text = pb.ModelWarmup.Input(data_type=pb.TYPE_STRING, dims=[warmup.tokens], zero_data=True)
    return pb.ModelWarmup(name=warmup.name, batch_size=warmup.batch_size, count=warmup.count, inputs={INPUT_NAME: text})


def _tensor_warmup(warmup: TensorWarmup) -> pb.ModelWarmup:
    message = pb.ModelWarmup(name=warmup.name, batch_size=warmup.batch_size, count=warmup.count)
    for tensor in warmup.inputs:
        entry = message.inputs[tensor.name]
        entry.data_type = _TYPES[tensor.datatype]
        entry.dims.extend(tensor.shape)
        match tensor.data:
            case WarmupData.ZERO:
                entry.zero_data = True
            case WarmupData.RANDOM:
                entry.random_data = True
            case WarmupData.FILE:
                entry.input_data_file = tensor.filename
    return message
