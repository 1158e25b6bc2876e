"""What a request gives an embedding model: texts or token ids."""

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from inference import grpc_service_pb2 as pb

from trivec_server.backends.tensor_interface import DTYPES
from trivec_server.errors import InvalidTensor
from trivec_server.transport.kserve.checks import CheckedTensor, Signature, check_request
from trivec_server.transport.kserve.contents import InputTensor
from trivec_server.transport.kserve.datatypes import BYTES, LENGTH
from trivec_server.transport.kserve.outputs import WantedOutput
from trivec_server.transport.kserve.subject import Subject
from trivec_server.types import PAD_TOKEN_ID, TensorSpec

TEXT = "text"
TOKEN_IDS = "token_ids"  # noqa: S105 - the name of an input
_TEXT_SPEC = TensorSpec(name=TEXT, datatype=BYTES, shape=(1,))
_TOKEN_ID_SPECS = {name: TensorSpec(name=TOKEN_IDS, datatype=name, shape=(-1,)) for name in ("INT64", "INT32")}


class EmbedInputs(NamedTuple):
    """One of texts and token ids, and the names of the outputs asked for, each once; none: all."""

    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    outputs: tuple[str, ...]


def read_plain(message: pb.ModelInferRequest, available: Sequence[str], max_rows: int) -> EmbedInputs | None:
    """
    The texts of a request of the common form: raw texts, outputs in the message. None where it is of another form or
    anything is wrong with it: `check_inputs` then says what.
    """
    inputs, raw = message.inputs, message.raw_input_contents
    if len(inputs) != 1 or len(raw) != 1:
        return None
    tensor = inputs[0]
    shape = tensor.shape
    is_plain = tensor.name == TEXT and tensor.datatype == BYTES and len(shape) == 2 and shape[1] == 1
    if not is_plain or len(tensor.parameters) or tensor.HasField("contents"):
        return None
    outputs: dict[str, None] = {}
    for output in message.outputs:
        name = output.name
        if name not in available or len(output.parameters):
            return None
        outputs[name] = None
    rows, data = shape[0], raw[0]
    if not 0 < rows <= max_rows:
        return None
    texts: list[str] = []
    at = 0
    try:
        for _ in range(rows):
            start = at + 4
            at = start + LENGTH.unpack_from(data, at)[0]
            texts.append(data[start:at].decode())
    except (UnicodeDecodeError, struct.error):
        return None
    return EmbedInputs(texts, (), tuple(outputs)) if at == len(data) else None


def check_inputs(
    inputs: Mapping[str, InputTensor],
    wanted: Mapping[str, WantedOutput],
    available: Sequence[str],
    max_rows: int,
    subject: Subject,
) -> EmbedInputs:
    """
    Checks a request of whatever form.

    Raises:
        InvalidTensor: the first fault found, in Triton's order.
    """
    (tensor,) = check_request(Signature(_specs(inputs), available, max_rows), inputs, wanted, subject).tensors
    for name, how in wanted.items():
        if how.classes:
            raise InvalidTensor(f"'classification' is not for output '{name}': an embedding has no classes")
    if tensor.name == TEXT:
        return EmbedInputs(_decoded(tensor, subject), (), tuple(wanted))
    return EmbedInputs((), _unpadded(tensor, subject), tuple(wanted))


def _specs(inputs: Mapping[str, InputTensor]) -> Mapping[str, TensorSpec]:
    """A request gives texts or token ids; ids in either width."""
    ids = inputs.get(TOKEN_IDS)
    if ids is None or TEXT in inputs:
        return {TEXT: _TEXT_SPEC}
    return {TOKEN_IDS: _TOKEN_ID_SPECS.get(ids.datatype, _TOKEN_ID_SPECS["INT64"])}


def _decoded(tensor: CheckedTensor, subject: Subject) -> list[str]:
    texts: list[str] = []
    try:
        for element in cast("list[bytes]", tensor.data):
            texts.append(element.decode())  # noqa: PERF401 - how many there are says which one is at fault
    except UnicodeDecodeError as error:
        raise InvalidTensor(
            f"input '{tensor.name}' for model '{subject.model}' is not valid UTF-8 in row {len(texts)}; encode the "
            "text as UTF-8"
        ) from error
    return texts


def _unpadded(tensor: CheckedTensor, subject: Subject) -> list[list[int]]:
    """The rows [R, L] as lists of ids, without the <pad> behind them."""
    data = np.frombuffer(tensor.data, DTYPES[tensor.datatype]) if isinstance(tensor.data, bytes) else tensor.data
    ids = np.asarray(data).reshape(tensor.shape)
    if ids.size and int(ids.min()) < 0:
        raise InvalidTensor(f"input '{tensor.name}' for model '{subject.model}' has a negative id; ids are from 0 on")
    rows: list[list[int]] = []
    for row in ids:
        tokens = np.flatnonzero(row != PAD_TOKEN_ID)
        rows.append(row[: tokens[-1] + 1].tolist() if len(tokens) else [])
    return rows
