"""Which fields of a ModelConfig are acted on, which are passed over with a warning, and which are refused."""

from collections.abc import Mapping

from google.protobuf.message import Message

from trivec_server.repository.pbtxt import Places

ACTED_ON_FIELDS = (
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
    "optimization.execution_accelerators.gpu_execution_accelerator.name",
    "model_warmup.name",
    "model_warmup.batch_size",
    "model_warmup.count",
    "model_warmup.inputs.data_type",
    "model_warmup.inputs.dims",
    "model_warmup.inputs.zero_data",
    "model_warmup.inputs.random_data",
    "parameters",
)
"""The fields that settings are made of, each with all that it holds. The index of a repeated field is left out."""

REFUSED_FIELDS: Mapping[str, str] = {
    "sequence_batching": "embedding models have no sequences of requests; remove it",
    "ensemble_scheduling": "ensembles cannot be served; remove it and name a backend",
    "model_transaction_policy.decoupled": "every request gets exactly one answer; remove it",
    "model_repository_agents": "agents do not run here, and what they check would go unchecked; remove it",
}
"""The fields that would make another model of it if they were passed over, each with how to mend it."""

IGNORED_FIELDS = (
    "runtime",
    "batch_input",
    "batch_output",
    "optimization.graph",
    "optimization.priority",
    "optimization.cuda",
    "optimization.input_pinned_memory",
    "optimization.output_pinned_memory",
    "optimization.gather_kernel_buffer_threshold",
    "optimization.eager_batching",
    "optimization.execution_accelerators.cpu_execution_accelerator",
    "optimization.execution_accelerators.gpu_execution_accelerator.parameters",
    "default_model_filename",
    "cc_model_filenames",
    "metric_tags",
    "model_operations",
    "response_cache",
    "model_metrics",
    "input.format",
    "input.reshape",
    "input.is_shape_tensor",
    "input.allow_ragged_batch",
    "input.optional",
    "input.is_non_linear_format_io",
    "output.reshape",
    "output.label_filename",
    "output.is_shape_tensor",
    "output.is_non_linear_format_io",
    "instance_group.name",
    "instance_group.rate_limiter",
    "instance_group.secondary_devices",
    "instance_group.profile",
    "instance_group.passive",
    "instance_group.host_policy",
    "dynamic_batching.preserve_ordering",
    "model_warmup.inputs.input_data_file",
)
"""The fields that are accepted with a warning: all others that Triton knows."""

NO_EFFECT = "accepted, but has no effect here"


def check_fields(config: Message, places: Places) -> list[str]:
    """
    One warning for each field that is set and passed over.

    Raises:
        ConfigError: a refused field is set.
    """
    warnings: list[str] = []
    _check_message(config, "", "", places, warnings)
    return warnings


def _check_message(message: Message, pattern: str, prefix: str, places: Places, warnings: list[str]) -> None:
    """`pattern` is `prefix`, the path of the message, without indices."""
    for descriptor, value in message.ListFields():
        field, at = f"{pattern}{descriptor.name}", f"{prefix}{descriptor.name}"
        if field in ACTED_ON_FIELDS:
            continue
        if field in REFUSED_FIELDS:
            raise places.error(at, f"not supported: {REFUSED_FIELDS[field]}")
        if field in IGNORED_FIELDS:
            if not isinstance(value, Message) or value.ByteSize():
                warnings.append(places.fault(at, NO_EFFECT))
        elif isinstance(value, Message):
            _check_message(value, f"{field}.", f"{at}.", places, warnings)
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                _check_message(entry, f"{field}.", f'{at}["{key}"].', places, warnings)
        else:
            for index, entry in enumerate(value):
                _check_message(entry, f"{field}.", f"{at}[{index}].", places, warnings)
