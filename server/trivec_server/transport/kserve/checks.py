"""Is a request one that the model takes? Checked in Triton's order and said in its words, before anything is made."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from trivec_server.backends.tensor_interface import DTYPES
from trivec_server.errors import InvalidTensor
from trivec_server.transport.kserve.contents import Data, InputTensor, datatype_shown
from trivec_server.transport.kserve.datatypes import BYTES, check_element_count, split_elements
from trivec_server.transport.kserve.shared_memory import SharedData
from trivec_server.transport.kserve.subject import Subject, shown_shape
from trivec_server.types import TensorSpec

_MAX_SHOWN_NAMES = 16
_MAX_ELEMENTS = (2**63 - 1) // 8
_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


class Signature(NamedTuple):
    """
    What a model takes and gives, without the batch dimension. `max_rows` 0: it has no batch dimension, and shapes are
    whole.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Sequence[str]
    max_rows: int


class CheckedTensor(NamedTuple):
    """An input that the model takes, with data of the size that its shape asks for; BYTES are a list."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data


class CheckedInputs(NamedTuple):
    """Inputs that the model takes. `rows` is 1 for a model without a batch dimension."""

    tensors: Sequence[CheckedTensor]
    rows: int


def check_request(
    signature: Signature, inputs: Mapping[str, InputTensor], outputs: Iterable[str], subject: Subject
) -> CheckedInputs:
    """
    Checks names, shapes, data types and sizes.

    Raises:
        InvalidTensor: the first fault found, in Triton's order.
        SharedMemoryUnusable: an input's shared memory has been shortened.
    """
    for name in outputs:
        if name not in signature.outputs:
            raise InvalidTensor(f"unexpected inference output '{name}' for model '{subject.model}'")
    _check_input_count(signature, inputs, subject)
    # Triton keeps inputs in a table that gives the last one first.
    backwards = list(inputs.values())[::-1]
    rows = _check_rows(signature, backwards, subject) if signature.max_rows else 1
    checked: list[CheckedTensor] = []
    for tensor in backwards:
        spec = signature.inputs.get(tensor.name)
        if spec is None:
            raise _unexpected(tensor, subject)
        if tensor.datatype != spec.datatype:
            raise subject.refuse(
                f"inference input '{tensor.name}' data-type is '{datatype_shown(tensor.datatype)}', but model "
                f"'{subject.model}' expects '{spec.datatype}'"
            )
        _check_shape(signature, spec, tensor, subject)
        checked.append(_measured(tensor, subject, has_rows=signature.max_rows > 0))
    if len(inputs) < len(signature.inputs) and _missing(signature, inputs):
        # As many as there may be, but optional ones in place of one that is not.
        raise _wrong_count(signature, inputs, subject)
    if rows < 1:
        raise subject.refuse(f"inference request batch-size must be >= 1 for '{subject.model}'")
    return CheckedInputs(checked, rows)


def _check_input_count(signature: Signature, inputs: Mapping[str, InputTensor], subject: Subject) -> None:
    if _required(signature) <= len(inputs) <= len(signature.inputs):
        return
    raise _wrong_count(signature, inputs, subject)


def _required(signature: Signature) -> int:
    return sum(not spec.optional for spec in signature.inputs.values())


def _missing(signature: Signature, inputs: Mapping[str, InputTensor]) -> list[str]:
    return [name for name, spec in signature.inputs.items() if not spec.optional and name not in inputs]


def _wrong_count(signature: Signature, inputs: Mapping[str, InputTensor], subject: Subject) -> InvalidTensor:
    known, required = len(signature.inputs), _required(signature)
    expected = str(known) if required == known else f"number of inputs between {required} and {known}"
    given = _shown_names(list(inputs)[::-1])
    missing = _shown_names(_missing(signature, inputs))
    return subject.refuse(
        f"expected {expected}{' inputs' if required == known else ''} but got {len(inputs)} inputs for model "
        f"'{subject.model}'. Got input(s) {given}, but missing required input(s) {missing}. Please provide all "
        "required input(s)."
    )


def _check_rows(signature: Signature, backwards: Sequence[InputTensor], subject: Subject) -> int:
    rows: int | None = None
    for tensor in backwards:
        if tensor.name not in signature.inputs:
            raise _unexpected(tensor, subject)
        if not tensor.shape:
            raise subject.refuse(
                f"input '{tensor.name}' has no shape but model requires batch dimension for '{subject.model}'"
            )
        if rows is not None and tensor.shape[0] != rows:
            raise subject.refuse(f"input '{tensor.name}' batch size does not match other inputs for '{subject.model}'")
        rows = tensor.shape[0]
    if rows is None:
        # Every input is optional, and none was given.
        return 1
    if rows > signature.max_rows:
        raise subject.refuse(f"inference request batch-size must be <= {signature.max_rows} for '{subject.model}'")
    return rows


def _check_shape(signature: Signature, spec: TensorSpec, tensor: InputTensor, subject: Subject) -> None:
    given = tensor.shape[1:] if signature.max_rows else tensor.shape
    matches = len(given) == len(spec.shape)
    for size, wanted in zip(given, spec.shape, strict=False) if matches else ():
        if size == -1:
            raise _unspecified(tensor, subject)
        if wanted not in (-1, size):
            matches = False
            break
    if not matches:
        expected = shown_shape((-1, *spec.shape) if signature.max_rows else spec.shape)
        raise subject.refuse(
            f"unexpected shape for input '{tensor.name}' for model '{subject.model}'. Expected {expected}, got "
            f"{shown_shape(tensor.shape)}. {_BATCH_NOTE if signature.max_rows else ''}"
        )


def _measured(tensor: InputTensor, subject: Subject, *, has_rows: bool) -> CheckedTensor:
    """
    The tensor if its data is what its shape asks for. Nothing is made of the shape's size, and shared memory is read
    only if it is of the right one.
    """
    name, datatype, shape, data = tensor
    # As in Triton, a batch of no rows is measured as one row, which its data never is.
    count = math.prod(shape[1:]) if has_rows and not shape[0] else math.prod(shape)
    is_negative = any(size < 0 for size in shape)
    if not count and not is_negative:
        _check_empty(tensor, subject)
    if datatype == BYTES:
        if is_negative:
            raise _unspecified(tensor, subject)
        if isinstance(data, SharedData):
            data = data.read()
        if isinstance(data, bytes):
            return CheckedTensor(name, datatype, shape, split_elements(data, count, name, subject))
        check_element_count(len(data), count, name, subject)
        return CheckedTensor(name, datatype, shape, data)
    given = tensor.size_bytes
    expected = count * DTYPES[datatype].itemsize
    if given != expected:
        raise subject.refuse(
            f"input byte size mismatch for input '{name}' for model '{subject.model}'. Expected {expected}, got {given}"
        )
    if is_negative:
        raise _unspecified(tensor, subject)
    return CheckedTensor(name, datatype, shape, data.read() if isinstance(data, SharedData) else data)


def _check_empty(tensor: InputTensor, subject: Subject) -> None:
    """An array without elements may not have any dimensions either: NumPy counts the bytes of those that are not 0."""
    if math.prod(size for size in tensor.shape if size) > _MAX_ELEMENTS:
        raise subject.refuse(
            f"the shape of input '{tensor.name}' for model '{subject.model}' is too large: "
            f"{shown_shape(tensor.shape)}; the dimensions that are not 0 may make at most {_MAX_ELEMENTS} elements"
        )


def _unexpected(tensor: InputTensor, subject: Subject) -> InvalidTensor:
    return InvalidTensor(f"unexpected inference input '{tensor.name}' for model '{subject.model}'")


def _unspecified(tensor: InputTensor, subject: Subject) -> InvalidTensor:
    return subject.refuse(
        f"All input dimensions should be specified for input '{tensor.name}' for model '{subject.model}', got "
        f"{shown_shape(tensor.shape)}"
    )


def _shown_names(names: Sequence[str]) -> str:
    shown = ",".join(f"'{name}'" for name in names[:_MAX_SHOWN_NAMES])
    return f"[{shown},...]" if len(names) > _MAX_SHOWN_NAMES else f"[{shown}]"
