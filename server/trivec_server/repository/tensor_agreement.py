"""What `config.pbtxt` says of a model that takes tensors, beside what the model's file says: agreed and completed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trivec_server.backends.tensor_interface import TensorEngineInfo
from trivec_server.errors import LoadError
from trivec_server.types import BatchingSettings, ModelSettings, TensorSettings, TensorSpec

DEFAULT_MAX_BATCH_SIZE = 4
"""Of a model whose config leaves out inputs or outputs, and the size (Triton's `default-max-batch-size`)."""

_MEND = "correct config.pbtxt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What requests give and get, without the batch dimension, how they are batched, and what the user should know."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: BatchingSettings
    notes: tuple[str, ...] = ()


def agree(settings: ModelSettings, tensors: TensorSettings, info: TensorEngineInfo) -> Agreement:
    """
    Completes what the config leaves out, as Triton does, and compares the rest with the model's file.

    Raises:
        LoadError: they contradict each other; says what each of them has.
    """
    batching, notes = settings.batching, []
    if not (tensors.inputs and tensors.outputs) and not _declares_whole_shapes(tensors, info):
        batching = _completed(batching, info, tensors.model_filename)
        if batching.max_batch_size != settings.batching.max_batch_size:
            notes.append(
                f"max_batch_size is {batching.max_batch_size}: config.pbtxt gives none, and the first dimension of all "
                f"inputs and outputs of {tensors.model_filename} varies"
            )
    file = _File(tensors.model_filename, info.unranked, batching.max_batch_size)
    needed = tuple(spec for spec in info.inputs if not spec.optional)
    inputs = file.checked("input", tensors.inputs, info.inputs) or file.own("input", needed)
    outputs = file.checked("output", tensors.outputs, info.outputs) or file.own("output", info.outputs)
    declared = {spec.name for spec in inputs}
    for spec in needed:
        if spec.name not in declared:
            raise LoadError(f"{file.name} needs the input '{spec.name}', which config.pbtxt does not declare; {_MEND}")
    return Agreement(inputs=inputs, outputs=outputs, batching=batching, notes=tuple(notes))


def _declares_whole_shapes(tensors: TensorSettings, info: TensorEngineInfo) -> bool:
    """Whether what the config does declare has as many dimensions as in the file: none of them is left out."""
    ranks = {spec.name: len(spec.shape) for spec in (*info.inputs, *info.outputs)}
    return any(
        ranks.get(spec.name) == len(spec.shape if spec.reshape is None else spec.reshape)
        for spec in (*tensors.inputs, *tensors.outputs)
    )


def _completed(batching: BatchingSettings, info: TensorEngineInfo, filename: str) -> BatchingSettings:
    """Triton's rule: where the first dimension of everything varies, it is the batch dimension, and requests join."""
    tensors = (*(spec for spec in info.inputs if not spec.optional), *info.outputs)
    fixed = next((spec for spec in tensors if spec.shape[:1] != (-1,)), None)
    if fixed is not None:
        if batching.max_batch_size:
            raise LoadError(
                f"max_batch_size is {batching.max_batch_size}, but '{fixed.name}' of {filename} has shape "
                f"{list(fixed.shape)}, which does not begin with a dimension that varies: remove max_batch_size"
            )
        return batching
    size = batching.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    return replace(batching, max_batch_size=size, joins_requests=batching.joins_requests or size > 1)


@dataclass(frozen=True, slots=True)
class _File:
    """The model's file, to compare with. `unranked`: its inputs and outputs of any number of dimensions."""

    name: str
    unranked: frozenset[str]
    max_batch_size: int

    def own(self, what: str, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The file's own inputs or outputs, as requests see them."""
        for spec in specs:
            if spec.name in self.unranked:
                raise LoadError(
                    f"{what} '{spec.name}' of {self.name} may have any number of dimensions: declare every {what} in "
                    "config.pbtxt"
                )
        start = 1 if self.max_batch_size else 0
        # A scalar is one element for requests.
        return tuple(
            replace(spec, shape=spec.shape[start:] or (1,), reshape=None if spec.shape[start:] else ())
            for spec in specs
        )

    def checked(self, what: str, specs: Sequence[TensorSpec], own: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The config's inputs or outputs; those of a scalar with its shape."""
        known = {spec.name: spec for spec in own}
        checked = []
        for spec in specs:
            if spec.name not in known:
                raise LoadError(
                    f"{what} '{spec.name}' of config.pbtxt is not in {self.name}, which has {', '.join(known)}; {_MEND}"
                )
            checked.append(self._checked_one(what, spec, known[spec.name]))
        return tuple(checked)

    def _checked_one(self, what: str, spec: TensorSpec, own: TensorSpec) -> TensorSpec:
        at = f"{what} '{spec.name}'"
        if spec.datatype != own.datatype:
            has = f"{self.name} has {_type(own.datatype)}"
            raise LoadError(f"{at}: config.pbtxt says {_type(spec.datatype)}, {has}; {_MEND}")
        if spec.optional and not own.optional:
            raise LoadError(f"{at} is optional in config.pbtxt, but has no default in {self.name}; {_MEND}")
        if spec.optional and self.max_batch_size:
            raise LoadError(f"{at} is optional, which needs `max_batch_size: 0`: rows without it could not be batched")
        if spec.name in self.unranked:
            return spec
        dims = spec.shape if spec.reshape is None else spec.reshape
        if not own.shape and not self.max_batch_size:
            if any(dim != 1 for dim in dims):
                raise LoadError(f"{at}: config.pbtxt says {list(dims)}, {self.name} has a scalar: [ 1 ]; {_MEND}")
            return replace(spec, reshape=())
        # A file for batches of one row will do where there are no others.
        if self.max_batch_size and own.shape[:1] != (-1,) and (own.shape[:1], self.max_batch_size) != ((1,), 1):
            raise LoadError(
                f"{at}: {self.name} has shape {list(own.shape)}, which does not begin with a dimension that varies, "
                f"but max_batch_size is {self.max_batch_size}: set max_batch_size to 0, and dims to the whole shape"
            )
        whole = (own.shape[0], *dims) if self.max_batch_size else dims
        # The file may take more sizes than requests may bring, and give fewer than responses may hold.
        wide, narrow = (own.shape, whole) if what == "input" else (whole, own.shape)
        same = len(wide) == len(narrow) and all(size in (other, -1) for size, other in zip(wide, narrow, strict=True))
        if not same:
            added = " (with the batch dimension, since max_batch_size is above 0)" if self.max_batch_size else ""
            raise LoadError(f"{at}: config.pbtxt says {list(whole)}{added}, {self.name} has {list(own.shape)}; {_MEND}")
        return spec


def _type(datatype: str) -> str:
    """The name in `config.pbtxt`."""
    return f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"
