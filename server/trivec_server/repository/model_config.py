"""`config.pbtxt` -> ModelSettings. The only module that knows Triton's ModelConfig."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from inference import model_config_pb2 as pb

from trivec_server.repository.config_fields import NO_EFFECT, REFUSED_FIELDS, check_fields
from trivec_server.repository.parameters import Parameters, parse_parameters
from trivec_server.repository.pbtxt import Places, read_pbtxt, shown, suggestion
from trivec_server.types import (
    BatchingSettings,
    InstanceGroup,
    InstanceKind,
    Mode,
    ModelSettings,
    QueuePolicy,
    TimeoutAction,
    VersionPolicy,
    Warmup,
)

PLATFORM_BACKENDS: Mapping[str, str] = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
"""Triton's platforms and the backend that each stands for."""

GPU_ACCELERATORS = ("tensorrt",)
"""Triton's names of the execution accelerators that an engine here can use."""

_INSTANCE_KINDS = {
    pb.ModelInstanceGroup.KIND_AUTO: InstanceKind.AUTO,
    pb.ModelInstanceGroup.KIND_GPU: InstanceKind.GPU,
    pb.ModelInstanceGroup.KIND_CPU: InstanceKind.CPU,
}
_TIMEOUT_ACTIONS = {
    pb.ModelQueuePolicy.REJECT: TimeoutAction.REJECT,
    pb.ModelQueuePolicy.DELAY: TimeoutAction.DELAY,
}
_OUTPUTS = {"dense": Mode.DENSE, "sparse": Mode.SPARSE, "multi_vector": Mode.MULTI_VECTOR}
_MAX_UINT32 = 0xFFFF_FFFF


def read_model_config(path: Path, directory_name: str) -> ModelSettings:
    """
    Reads and checks a `config.pbtxt`. `directory_name`: the model's directory, the model's name.

    Raises:
        ConfigError: the file cannot be read, is not text format of a ModelConfig, or asks for what cannot be served.
            One line with the file, the line and column where known, the field, and what is allowed.
    """
    config = pb.ModelConfig()
    places = read_pbtxt(path, config)
    return _Reader(config, places).settings(directory_name)


class _Reader:
    """Turns one parsed config into settings, collecting warnings on the way."""

    def __init__(self, config: pb.ModelConfig, places: Places) -> None:
        self._config = config
        self._places = places
        self._error = places.error
        self._warnings = check_fields(config, places)

    def settings(self, directory_name: str) -> ModelSettings:
        config = self._config
        if config.name not in ("", directory_name):
            problem = f"{shown(config.name)} is not the name of the model's directory, {shown(directory_name)}"
            raise self._error("name", f"{problem}; remove the line or make them equal")
        parameters = parse_parameters(
            {key: parameter.string_value for key, parameter in config.parameters.items()}, self._places
        )
        self._check_input()
        dims = self._output_dims()
        max_batch_size = self._max_batch_size()
        return ModelSettings(
            name=directory_name,
            backend=self._backend(),
            version_policy=self._version_policy(),
            batching=self._batching(max_batch_size, parameters.token_budget),
            instance_groups=tuple(map(self._instance_group, range(len(config.instance_group)))) or (InstanceGroup(),),
            warmups=tuple(self._warmup(index, max_batch_size, parameters) for index in range(len(config.model_warmup))),
            declared_modes=_union(_OUTPUTS[name] for name in dims) if dims else None,
            dense_dimension=_known(dims.get("dense")),
            multi_vector_dimension=_known(dims.get("multi_vector")),
            pooling=parameters.pooling,
            precision=parameters.precision,
            max_tokens=parameters.max_tokens,
            query_prefix=parameters.query_prefix,
            passage_prefix=parameters.passage_prefix,
            score_weights=parameters.score_weights,
            intra_op_threads=parameters.intra_op_threads,
            accelerator=self._accelerator(),
            device_memory_mb=parameters.device_memory_mb,
            worker_process=parameters.worker_process,
            warnings=tuple(self._warnings),
        )

    def _warn(self, field: str, problem: str) -> None:
        self._warnings.append(self._places.fault(field, problem))

    def _backend(self) -> str:
        backend, platform = self._config.backend, self._config.platform
        if platform:
            if platform == "ensemble":
                raise self._error("platform", f"not supported: {REFUSED_FIELDS['ensemble_scheduling']}")
            implied = PLATFORM_BACKENDS.get(platform)
            if implied is None:
                near = suggestion(platform, PLATFORM_BACKENDS) or f"; known are {', '.join(PLATFORM_BACKENDS)}"
                raise self._error("platform", f"unknown platform {shown(platform)}{near}")
            if backend not in ("", implied):
                raise self._error("platform", f"{shown(platform)} is backend {implied}, not {shown(backend)}")
            return implied
        if not backend:
            raise self._error("backend", 'missing: name the engine, such as `backend: "onnxruntime"`, or "auto"')
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", backend):
            raise self._error("backend", f"{shown(backend)} is not a name of letters, digits, `_` and `-`")
        return backend

    def _accelerator(self) -> str | None:
        """The execution accelerator for GPUs; Triton's list, of which one can be had."""
        chosen = None
        for index, entry in enumerate(self._config.optimization.execution_accelerators.gpu_execution_accelerator):
            field = f"optimization.execution_accelerators.gpu_execution_accelerator[{index}]"
            if entry.name not in GPU_ACCELERATORS:
                raise self._error(f"{field}.name", f"{shown(entry.name)} is not {' or '.join(GPU_ACCELERATORS)}")
            chosen = entry.name
        return chosen

    def _max_batch_size(self) -> int:
        size = self._config.max_batch_size
        if size == 0 and not self._places.given("max_batch_size"):
            default = BatchingSettings().max_batch_size
            self._warn("max_batch_size", f"not given: {default} texts are taken as the largest batch")
            return default
        if size < 1:
            raise self._error("max_batch_size", f"{size} is below 1: embedding models always have a batch dimension")
        return size

    def _check_input(self) -> None:
        if len(self._config.input) > 1:
            raise self._error("input[1]", "there is only one input, `text`; remove the others")
        for tensor in self._config.input:
            if tensor.name != "text":
                raise self._error("input[0].name", f"{shown(tensor.name)} is not `text`, the only input")
            if tensor.data_type != pb.TYPE_STRING:
                raise self._error("input[0].data_type", f"{_type_name(tensor.data_type)} is not TYPE_STRING")
            if list(tensor.dims) != [1]:
                raise self._error("input[0].dims", f"{list(tensor.dims)} is not [1], one text for each row of a batch")

    def _output_dims(self) -> Mapping[str, int]:
        """The declared outputs, each with its last dimension (-1: not stated)."""
        dims: dict[str, int] = {}
        for index, tensor in enumerate(self._config.output):
            at = f"output[{index}]"
            if tensor.name not in _OUTPUTS:
                near = suggestion(tensor.name, _OUTPUTS) or f"; known are {', '.join(_OUTPUTS)}"
                raise self._error(f"{at}.name", f"unknown output {shown(tensor.name)}{near}")
            if tensor.name in dims:
                raise self._error(f"{at}.name", f"output {shown(tensor.name)} is given twice")
            if tensor.data_type not in (pb.TYPE_FP32, pb.TYPE_FP16):
                raise self._error(f"{at}.data_type", f"{_type_name(tensor.data_type)} is not TYPE_FP32 or TYPE_FP16")
            if tensor.data_type == pb.TYPE_FP16:
                self._warn(f"{at}.data_type", f"TYPE_FP16 {NO_EFFECT}: each request chooses its encoding")
            shape = list(tensor.dims)
            dims[tensor.name] = shape[-1] if shape else 0
            if tensor.name == "dense":
                sound, allowed = len(shape) == 1, "[D], the dimension of the vector"
            elif tensor.name == "sparse":
                sound, allowed = shape == [-1], "[-1]: the number of entries varies"
            else:
                sound, allowed = len(shape) == 2 and shape[0] == -1, "[-1, D], tokens and the dimension of each vector"
            if not sound or not (dims[tensor.name] == -1 or 0 < dims[tensor.name] <= _MAX_UINT32):
                raise self._error(f"{at}.dims", f"{shape} is not {allowed}")
        return dims

    def _version_policy(self) -> VersionPolicy:
        policy = self._config.version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                return VersionPolicy(latest=None)
            case "latest":
                field = "version_policy.latest.num_versions"
                return VersionPolicy(latest=self._positive(field, policy.latest.num_versions))
            case "specific":
                field = "version_policy.specific.versions"
                if not policy.specific.versions:
                    raise self._error(field, "empty: name at least one version")
                for index, version in enumerate(policy.specific.versions):
                    if version < 1:
                        raise self._error(f"{field}[{index}]", f"{version} is below 1, the lowest version")
                return VersionPolicy(latest=None, specific=tuple(sorted(set(policy.specific.versions))))
        return VersionPolicy()

    def _batching(self, max_batch_size: int, token_budget: int | None) -> BatchingSettings:
        config = self._config.dynamic_batching
        for index, size in enumerate(config.preferred_batch_size):
            field = f"dynamic_batching.preferred_batch_size[{index}]"
            if size < 1:
                raise self._error(field, f"{size} is below 1")
            if size > max_batch_size:
                raise self._error(field, f"{size} exceeds max_batch_size {max_batch_size}")
        self._check_priorities(config)
        self._check_ordering(config)
        policies = config.priority_queue_policy if config.priority_levels else {}
        return BatchingSettings(
            max_batch_size=max_batch_size,
            preferred_batch_sizes=tuple(sorted(set(config.preferred_batch_size))),
            max_queue_delay_us=config.max_queue_delay_microseconds,
            priority_levels=config.priority_levels,
            default_priority_level=config.default_priority_level if config.priority_levels else 0,
            queue_policy=self._queue_policy("default_queue_policy", config.default_queue_policy),
            priority_queue_policies=MappingProxyType(
                {
                    level: self._queue_policy(f'priority_queue_policy["{level}"]', policy)
                    for level, policy in sorted(policies.items())
                }
            ),
            token_budget=token_budget,
        )

    def _check_priorities(self, config: pb.ModelDynamicBatching) -> None:
        levels, default = config.priority_levels, config.default_priority_level
        if levels == 0:
            if default:
                self._warn("dynamic_batching.default_priority_level", f"{NO_EFFECT}: priority_levels is 0")
            if config.priority_queue_policy:
                self._warn("dynamic_batching.priority_queue_policy", f"{NO_EFFECT}: priority_levels is 0")
            return
        if levels > _MAX_UINT32:
            raise self._error("dynamic_batching.priority_levels", f"{levels} exceeds {_MAX_UINT32}")
        if not 1 <= default <= levels:
            problem = f"{default} is not a level from 1 to priority_levels {levels}"
            raise self._error("dynamic_batching.default_priority_level", problem)
        for level in config.priority_queue_policy:
            if not 1 <= level <= levels:
                field = f'dynamic_batching.priority_queue_policy["{level}"]'
                raise self._error(field, f"{level} is not a level from 1 to priority_levels {levels}")

    def _check_ordering(self, config: pb.ModelDynamicBatching) -> None:
        """Triton's rule: one priority level at most and no DELAY, or the order could not be kept."""
        if not config.preserve_ordering:
            return
        field = "dynamic_batching.preserve_ordering"
        if config.priority_levels > 1:
            raise self._error(field, f"excludes priority_levels {config.priority_levels}; at most 1 keeps the order")
        policies = (config.default_queue_policy, *config.priority_queue_policy.values())
        if any(policy.timeout_action == pb.ModelQueuePolicy.DELAY for policy in policies):
            raise self._error(field, "excludes a queue policy with timeout_action DELAY")

    def _queue_policy(self, name: str, policy: pb.ModelQueuePolicy) -> QueuePolicy:
        if policy.timeout_action not in _TIMEOUT_ACTIONS:
            field = f"dynamic_batching.{name}.timeout_action"
            raise self._error(field, f"{policy.timeout_action} is not REJECT or DELAY")
        if policy.allow_timeout_override:
            self._warn(
                f"dynamic_batching.{name}.allow_timeout_override",
                f"{NO_EFFECT}: a request's own deadline always shortens its wait",
            )
        return QueuePolicy(
            timeout_action=_TIMEOUT_ACTIONS[policy.timeout_action],
            timeout_us=policy.default_timeout_microseconds,
            max_queue_size=policy.max_queue_size,
        )

    def _instance_group(self, index: int) -> InstanceGroup:
        group, at = self._config.instance_group[index], f"instance_group[{index}]"
        if group.kind == pb.ModelInstanceGroup.KIND_MODEL:
            raise self._error(f"{at}.kind", "KIND_MODEL is not supported; use KIND_AUTO, KIND_GPU or KIND_CPU")
        if group.kind not in _INSTANCE_KINDS:
            raise self._error(f"{at}.kind", f"{group.kind} is not KIND_AUTO, KIND_GPU or KIND_CPU")
        if group.gpus and group.kind == pb.ModelInstanceGroup.KIND_CPU:
            raise self._error(f"{at}.gpus", "excluded by KIND_CPU; remove one of them")
        for position, gpu in enumerate(group.gpus):
            if gpu < 0:
                raise self._error(f"{at}.gpus[{position}]", f"{gpu} is below 0, the first GPU")
            if gpu in group.gpus[:position]:
                raise self._error(f"{at}.gpus[{position}]", f"{gpu} is given twice; `count` runs several instances")
        count = self._positive(f"{at}.count", group.count)
        return InstanceGroup(kind=_INSTANCE_KINDS[group.kind], count=count, gpus=tuple(group.gpus))

    def _warmup(self, index: int, max_batch_size: int, parameters: Parameters) -> Warmup:
        config, at = self._config.model_warmup[index], f"model_warmup[{index}]"
        tokens = min(Warmup(name="").tokens, parameters.max_tokens or Warmup(name="").tokens)
        for key, entry in config.inputs.items():
            field = f'{at}.inputs["{key}"]'
            if key != "text":
                raise self._error(field, "the only input is `text`")
            if entry.data_type != pb.TYPE_STRING:
                raise self._error(f"{field}.data_type", f"{_type_name(entry.data_type)} is not TYPE_STRING")
            if len(entry.dims) != 1 or entry.dims[0] < 1:
                raise self._error(f"{field}.dims", f"{list(entry.dims)} is not [n], a text of n tokens")
            if parameters.max_tokens is not None and entry.dims[0] > parameters.max_tokens:
                problem = f"{entry.dims[0]} tokens exceed max_tokens {parameters.max_tokens}"
                raise self._error(f"{field}.dims", problem)
            # [1] is how Triton declares one text: it says nothing about its length.
            tokens = entry.dims[0] if entry.dims[0] > 1 else tokens
        batch_size = self._positive(f"{at}.batch_size", config.batch_size)
        if batch_size > max_batch_size:
            raise self._error(f"{at}.batch_size", f"{batch_size} exceeds max_batch_size {max_batch_size}")
        count = self._positive(f"{at}.count", config.count)
        return Warmup(name=config.name or at, batch_size=batch_size, tokens=tokens, count=count)

    def _positive(self, field: str, value: int) -> int:
        """A number from 1; 1 where the file does not give it."""
        if value == 0 and not self._places.given(field):
            return 1
        if value < 1:
            raise self._error(field, f"{value} is below 1")
        return value


def _type_name(data_type: int) -> str:
    names: Sequence[str] = pb.DataType.keys()
    return names[data_type] if 0 <= data_type < len(names) else str(data_type)


def _known(dimension: int | None) -> int | None:
    return None if dimension == -1 else dimension


def _union(modes: Iterable[Mode]) -> Mode:
    union = Mode(0)
    for mode in modes:
        union |= mode
    return union
