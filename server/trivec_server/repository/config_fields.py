"""Which fields of a ModelConfig are acted on, which are passed over with a warning, and which are refused."""

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from trivec_server.repository.pbtxt import Places


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRules:
    """
    All fields of the schema for one kind of model, each with all that it holds. The index of a repeated field is left
    out. `acted_on`: settings are made of them. `ignored`: accepted with a warning. `refused`: to pass over them would
    serve something else than the file asks for; each with how to mend it.
    """

    acted_on: tuple[str, ...]
    ignored: tuple[str, ...]
    refused: Mapping[str, str]


_ACTED_ON = (
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "input.name",
    "input.data_type",
    "input.dims",
    "output.name",
    "output.data_type",
    "output.dims",
    "version_policy.latest.num_versions",
    "version_policy.all",
    "version_policy.specific.versions",
    "instance_group.kind",
    "instance_group.count",
    "instance_group.gpus",
    "dynamic_batching.preferred_batch_size",
    "dynamic_batching.max_queue_delay_microseconds",
    "dynamic_batching.priority_levels",
    "dynamic_batching.default_priority_level",
    "dynamic_batching.default_queue_policy",
    "dynamic_batching.priority_queue_policy",
    "model_warmup.name",
    "model_warmup.batch_size",
    "model_warmup.count",
    "model_warmup.inputs.data_type",
    "model_warmup.inputs.dims",
    "model_warmup.inputs.zero_data",
    "model_warmup.inputs.random_data",
    "parameters",
)
_IGNORED = (
    "runtime",
    "optimization.graph",
    "optimization.priority",
    "optimization.cuda",
    "optimization.input_pinned_memory",
    "optimization.output_pinned_memory",
    "optimization.gather_kernel_buffer_threshold",
    "optimization.eager_batching",
    "optimization.execution_accelerators.cpu_execution_accelerator",
    "optimization.execution_accelerators.gpu_execution_accelerator.parameters",
    "cc_model_filenames",
    "metric_tags",
    "model_operations",
    "model_metrics",
    "input.format",
    "output.label_filename",
    "instance_group.name",
    "instance_group.rate_limiter",
    "instance_group.secondary_devices",
    "instance_group.profile",
    "instance_group.passive",
    "instance_group.host_policy",
    "dynamic_batching.preserve_ordering",
)
_REFUSED = {
    "sequence_batching": "sequences of requests cannot be served; remove it",
    "ensemble_scheduling": "ensembles cannot be served; remove it and name a backend",
    "model_transaction_policy.decoupled": "every request gets exactly one answer; remove it",
    "model_repository_agents": "agents do not run here, and what they check would go unchecked; remove it",
}
_ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator.name"
_TENSOR_DETAILS = ("input.reshape", "input.optional", "input.allow_ragged_batch", "output.reshape")
_TENSORRT_DETAILS = (
    "input.is_shape_tensor",
    "input.is_non_linear_format_io",
    "output.is_shape_tensor",
    "output.is_non_linear_format_io",
)
_ADDED_TENSORS = ("batch_input", "batch_output")
_WARMUP_FILE = "model_warmup.inputs.input_data_file"

EMBEDDING_FIELDS = FieldRules(
    acted_on=(*_ACTED_ON, _ACCELERATOR, "response_cache"),
    ignored=(
        *_IGNORED,
        *_ADDED_TENSORS,
        *_TENSOR_DETAILS,
        *_TENSORRT_DETAILS,
        "default_model_filename",
        _WARMUP_FILE,
    ),
    refused=_REFUSED,
)
"""For embedding models."""

TENSOR_FIELDS = FieldRules(
    acted_on=(*_ACTED_ON, *_TENSOR_DETAILS, "default_model_filename", _WARMUP_FILE),
    ignored=(*_IGNORED, _ACCELERATOR, "response_cache"),
    refused={
        **_REFUSED,
        **dict.fromkeys(_ADDED_TENSORS, "the server adds no tensors to those of requests; remove it"),
        **dict.fromkeys(_TENSORRT_DETAILS, "only TensorRT plans have it; remove it"),
    },
)
"""For models that take tensors."""

NO_EFFECT = "accepted, but has no effect here"


def check_fields(config: Message, places: Places, rules: FieldRules) -> list[str]:
    """
    One warning for each field that is set and passed over.

    Raises:
        ConfigError: a refused field is set.
    """
    warnings: list[str] = []
    _Check(places, rules, warnings).check(config, "", "")
    return warnings


@dataclass(frozen=True, slots=True)
class _Check:
    places: Places
    rules: FieldRules
    warnings: list[str]

    def check(self, message: Message, pattern: str, prefix: str) -> None:
        """`pattern` is `prefix`, the path of the message, without indices."""
        for descriptor, value in message.ListFields():
            field, at = f"{pattern}{descriptor.name}", f"{prefix}{descriptor.name}"
            if field in self.rules.acted_on:
                continue
            if field in self.rules.refused:
                raise self.places.error(at, f"not supported: {self.rules.refused[field]}")
            if field in self.rules.ignored:
                if not isinstance(value, Message) or value.ByteSize():
                    self.warnings.append(self.places.fault(at, NO_EFFECT))
            elif isinstance(value, Message):
                self.check(value, f"{field}.", f"{at}.")
            elif isinstance(value, Mapping):
                for key, entry in value.items():
                    self.check(entry, f"{field}.", f'{at}["{key}"].')
            else:
                for index, entry in enumerate(value):
                    self.check(entry, f"{field}.", f"{at}[{index}].")
