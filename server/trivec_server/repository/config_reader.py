"""What the `config.pbtxt` of every kind of model has: backend, versions, batching, instances."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from inference import model_config_pb2 as pb

from trivec_server.repository.config_fields import NO_EFFECT, FieldRules, check_fields
from trivec_server.repository.pbtxt import Places, shown, suggestion
from trivec_server.types import (
    BatchingSettings,
    InstanceGroup,
    InstanceKind,
    QueuePolicy,
    TimeoutAction,
    VersionPolicy,
)

PLATFORM_BACKENDS: Mapping[str, str] = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
"""Triton's platforms and the backend that each stands for."""

MAX_UINT32 = 0xFFFF_FFFF

_MAX_INSTANCES = 64
"""Of one model: each has its own thread and its own copy of the weights."""

_INSTANCE_KINDS = {
    pb.ModelInstanceGroup.KIND_AUTO: InstanceKind.AUTO,
    pb.ModelInstanceGroup.KIND_GPU: InstanceKind.GPU,
    pb.ModelInstanceGroup.KIND_CPU: InstanceKind.CPU,
}
_TIMEOUT_ACTIONS = {
    pb.ModelQueuePolicy.REJECT: TimeoutAction.REJECT,
    pb.ModelQueuePolicy.DELAY: TimeoutAction.DELAY,
}


class ConfigReader:
    """
    Turns the parts of one parsed config into settings, collecting warnings on the way. Each method raises ConfigError
    where a value is wrong: with the file, the place where known, the field, and what is allowed.
    """

    def __init__(self, config: pb.ModelConfig, places: Places, rules: FieldRules) -> None:
        self.config = config
        self.places = places
        self.error = places.error
        self._refused = rules.refused
        self.warnings = check_fields(config, places, rules)

    def warn(self, field: str, problem: str) -> None:
        """Adds a line for the log."""
        self.warnings.append(self.places.fault(field, problem))

    def check_name(self, directory_name: str) -> None:
        """The model's name, where given, is that of its directory."""
        if self.config.name not in ("", directory_name):
            problem = f"{shown(self.config.name)} is not the name of the model's directory, {shown(directory_name)}"
            raise self.error("name", f"{problem}; remove the line or make them equal")

    def backend(self) -> str:
        """The name of the engine."""
        backend, platform = self.config.backend, self.config.platform
        if platform:
            if platform == "ensemble":
                raise self.error("platform", f"not supported: {self._refused['ensemble_scheduling']}")
            implied = PLATFORM_BACKENDS.get(platform)
            if implied is None:
                near = suggestion(platform, PLATFORM_BACKENDS) or f"; known are {', '.join(PLATFORM_BACKENDS)}"
                raise self.error("platform", f"unknown platform {shown(platform)}{near}")
            if backend not in ("", implied):
                raise self.error("platform", f"{shown(platform)} is backend {implied}, not {shown(backend)}")
            return implied
        if not backend:
            raise self.error("backend", 'missing: name the engine, such as `backend: "onnxruntime"`, or "auto"')
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", backend):
            raise self.error("backend", f"{shown(backend)} is not a name of letters, digits, `_` and `-`")
        return backend

    def version_policy(self) -> VersionPolicy:
        """Which versions to serve."""
        policy = self.config.version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                return VersionPolicy(latest=None)
            case "latest":
                field = "version_policy.latest.num_versions"
                return VersionPolicy(latest=self.positive(field, policy.latest.num_versions))
            case "specific":
                field = "version_policy.specific.versions"
                if not policy.specific.versions:
                    raise self.error(field, "empty: name at least one version")
                for index, version in enumerate(policy.specific.versions):
                    if version < 1:
                        raise self.error(f"{field}[{index}]", f"{version} is below 1, the lowest version")
                return VersionPolicy(latest=None, specific=tuple(sorted(set(policy.specific.versions))))
        return VersionPolicy()

    def batching(
        self, max_batch_size: int, *, token_budget: int | None = None, joins_requests: bool = True
    ) -> BatchingSettings:
        """How requests are gathered."""
        config = self.config.dynamic_batching
        for index, size in enumerate(config.preferred_batch_size):
            field = f"dynamic_batching.preferred_batch_size[{index}]"
            if size < 1:
                raise self.error(field, f"{size} is below 1")
            if size > max_batch_size:
                raise self.error(field, f"{size} exceeds max_batch_size {max_batch_size}")
        self._check_priorities(config)
        self._check_ordering(config)
        policies = config.priority_queue_policy if config.priority_levels else {}
        return BatchingSettings(
            max_batch_size=max_batch_size,
            joins_requests=joins_requests,
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

    def instance_groups(self) -> tuple[InstanceGroup, ...]:
        """The engine instances; one group of one where none are given."""
        groups = tuple(map(self._instance_group, range(len(self.config.instance_group)))) or (InstanceGroup(),)
        total = sum(group.count * max(1, len(group.gpus)) for group in groups)
        if total > _MAX_INSTANCES:
            at = "instance_group[0].count" if len(groups) == 1 else "instance_group"
            raise self.error(at, f"{total} engine instances; at most {_MAX_INSTANCES} of a model can run in one server")
        return groups

    def positive(self, field: str, value: int) -> int:
        """A number from 1; 1 where the file does not give it."""
        if value == 0 and not self.places.given(field):
            return 1
        if value < 1:
            raise self.error(field, f"{value} is below 1")
        return value

    def _check_priorities(self, config: pb.ModelDynamicBatching) -> None:
        levels, default = config.priority_levels, config.default_priority_level
        if levels == 0:
            if default:
                self.warn("dynamic_batching.default_priority_level", f"{NO_EFFECT}: priority_levels is 0")
            if config.priority_queue_policy:
                self.warn("dynamic_batching.priority_queue_policy", f"{NO_EFFECT}: priority_levels is 0")
            return
        if levels > MAX_UINT32:
            raise self.error("dynamic_batching.priority_levels", f"{levels} exceeds {MAX_UINT32}")
        if not 1 <= default <= levels:
            problem = f"{default} is not a level from 1 to priority_levels {levels}"
            raise self.error("dynamic_batching.default_priority_level", problem)
        for level in config.priority_queue_policy:
            if not 1 <= level <= levels:
                field = f'dynamic_batching.priority_queue_policy["{level}"]'
                raise self.error(field, f"{level} is not a level from 1 to priority_levels {levels}")

    def _check_ordering(self, config: pb.ModelDynamicBatching) -> None:
        """Triton's rule: one priority level at most and no DELAY, or the order could not be kept."""
        if not config.preserve_ordering:
            return
        field = "dynamic_batching.preserve_ordering"
        if config.priority_levels > 1:
            raise self.error(field, f"excludes priority_levels {config.priority_levels}; at most 1 keeps the order")
        policies = (config.default_queue_policy, *config.priority_queue_policy.values())
        if any(policy.timeout_action == pb.ModelQueuePolicy.DELAY for policy in policies):
            raise self.error(field, "excludes a queue policy with timeout_action DELAY")

    def _queue_policy(self, name: str, policy: pb.ModelQueuePolicy) -> QueuePolicy:
        if policy.timeout_action not in _TIMEOUT_ACTIONS:
            field = f"dynamic_batching.{name}.timeout_action"
            raise self.error(field, f"{policy.timeout_action} is not REJECT or DELAY")
        return QueuePolicy(
            timeout_action=_TIMEOUT_ACTIONS[policy.timeout_action],
            timeout_us=policy.default_timeout_microseconds,
            allow_timeout_override=policy.allow_timeout_override,
            max_queue_size=policy.max_queue_size,
        )

    def _instance_group(self, index: int) -> InstanceGroup:
        group, at = self.config.instance_group[index], f"instance_group[{index}]"
        if group.kind == pb.ModelInstanceGroup.KIND_MODEL:
            raise self.error(f"{at}.kind", "KIND_MODEL is not supported; use KIND_AUTO, KIND_GPU or KIND_CPU")
        if group.kind not in _INSTANCE_KINDS:
            raise self.error(f"{at}.kind", f"{group.kind} is not KIND_AUTO, KIND_GPU or KIND_CPU")
        if group.gpus and group.kind == pb.ModelInstanceGroup.KIND_CPU:
            raise self.error(f"{at}.gpus", "excluded by KIND_CPU; remove one of them")
        for position, gpu in enumerate(group.gpus):
            if gpu < 0:
                raise self.error(f"{at}.gpus[{position}]", f"{gpu} is below 0, the first GPU")
            if gpu in group.gpus[:position]:
                raise self.error(f"{at}.gpus[{position}]", f"{gpu} is given twice; `count` runs several instances")
        count = self.positive(f"{at}.count", group.count)
        return InstanceGroup(kind=_INSTANCE_KINDS[group.kind], count=count, gpus=tuple(group.gpus))


def type_name(data_type: int) -> str:
    """Triton's name of a data type: `TYPE_FP32`."""
    names: Sequence[str] = pb.DataType.keys()
    return names[data_type] if 0 <= data_type < len(names) else str(data_type)
