"""ModelInfer for embedding models: texts or token ids in; dense vectors, a CSR triple and multi-vectors out."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import cast, overload

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import EngineInfo
from trivec_server.errors import InvalidTensor
from trivec_server.repository.registry import EmbeddingVersion
from trivec_server.serving.encode import prune
from trivec_server.serving.request import EmbedResult, EmbedTask, SparseRow, VectorEncoding
from trivec_server.settings import Limits
from trivec_server.transport.calls import Call
from trivec_server.transport.kserve.checks import Signature, check_request
from trivec_server.transport.kserve.contents import InputTensor
from trivec_server.transport.kserve.datatypes import BYTES, DTYPES, Buffer, as_buffer
from trivec_server.transport.kserve.embed_parameters import MODES, EmbedParameters, parse_embed_parameters
from trivec_server.transport.kserve.outputs import WantedOutput
from trivec_server.transport.kserve.parameters import RequestParameters
from trivec_server.transport.kserve.response import OutputTensor
from trivec_server.transport.kserve.subject import Subject
from trivec_server.transport.parse import check_text_bytes
from trivec_server.types import PAD_TOKEN_ID, InputType, Mode, TensorSpec

TEXT = "text"
TOKEN_IDS = "token_ids"  # noqa: S105 - the name of an input
_OUTPUT_MODES: Mapping[str, Mode] = {
    "dense": Mode.DENSE,
    "sparse_indptr": Mode.SPARSE,
    "sparse_indices": Mode.SPARSE,
    "sparse_values": Mode.SPARSE,
    "multi_vector_offsets": Mode.MULTI_VECTOR,
    "multi_vector": Mode.MULTI_VECTOR,
}
_TEXT_SPEC = TensorSpec(name=TEXT, datatype=BYTES, shape=(1,))
_TOKEN_ID_SPECS = {name: TensorSpec(name=TOKEN_IDS, datatype=name, shape=(-1,)) for name in ("INT64", "INT32")}
_FLOAT_TYPES = {VectorEncoding.FLOAT32: "FP32", VectorEncoding.FLOAT16: "FP16"}


def embedding_outputs(info: EngineInfo) -> list[tuple[str, str, tuple[int, ...]]]:
    """The outputs of an embedding model: name, data type and shape, whole."""
    shapes: Mapping[str, tuple[str, tuple[int, ...]]] = {
        "dense": ("FP32", (-1, info.dense_dimension)),
        "sparse_indptr": ("INT64", (-1,)),
        "sparse_indices": ("INT64", (-1,)),
        "sparse_values": ("FP32", (-1,)),
        "multi_vector_offsets": ("INT64", (-1,)),
        "multi_vector": ("FP32", (-1, info.multi_vector_dimension)),
    }
    return [(name, *shapes[name]) for name in _output_names(info.modes)]


class EmbedInference:
    """One request to an embedding model."""

    def __init__(
        self,
        served: EmbeddingVersion,
        call: Call,
        inputs: Mapping[str, InputTensor],
        wanted: Mapping[str, WantedOutput],
        parameters: RequestParameters,
        subject: Subject,
        limits: Limits,
        size_bytes: int,
    ) -> None:
        """
        Raises:
            InvalidTensor, InvalidRequest: the request is wrong.
        """
        info = served.loaded.info
        available = _output_names(info.modes)
        signature = Signature(_input_spec(inputs), available, limits.max_texts_per_request)
        (tensor,) = check_request(signature, inputs, wanted, subject).tensors
        options = parse_embed_parameters(parameters.custom, served.loaded.max_tokens)
        self._names, modes = _chosen_outputs(available, wanted, options.modes)
        texts: Sequence[str] = ()
        token_ids: Sequence[Sequence[int]] = ()
        if tensor.name == TEXT:
            texts = _decoded(tensor, subject)
            if size_bytes > limits.max_text_bytes:
                check_text_bytes(TEXT, texts, limits)
        else:
            token_ids = _unpadded(tensor, subject)
            if options.input_type is not InputType.NONE:
                raise InvalidTensor("'input_type' must be left out with 'token_ids': put the prefix's ids into them")
        levels = served.loaded.settings.batching.priority_levels
        self._task = EmbedTask(
            request_id=call.request_id,
            modes=modes,
            texts=texts,
            token_ids=token_ids,
            input_types=options.input_type,
            truncation=options.truncation,
            max_tokens=options.max_tokens,
            # As in Triton, a level that the model does not have is its default one.
            priority=parameters.priority if parameters.priority <= levels else 0,
            deadline=call.deadline,
            size_bytes=size_bytes,
            fields=_Rows(TEXT, len(texts)) if texts else (),
            encoding=options.encoding,
            max_result_bytes=limits.max_response_bytes,
            timeout_us=parameters.timeout_us,
        )
        self._pipeline = served.pipeline
        self._options = options

    @property
    def held_bytes(self) -> int:
        """About what its result takes in memory."""
        return self._pipeline.held_bytes(self._task)

    async def compute(self) -> "EmbedAnswer":
        """
        Lets the model's pipeline work.

        Raises:
            As `Pipeline.embed`.
        """
        result = await self._pipeline.embed(self._task)
        size = self._pipeline.result_bytes(self._task, self._task.text_count, result.token_count)
        return EmbedAnswer(result, self._names, self._options, size)


class EmbedAnswer:
    """The embeddings of one request. `size_bytes`: about what they take in the response."""

    def __init__(self, result: EmbedResult, names: Sequence[str], options: EmbedParameters, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._result = result
        self._names = names
        self._options = options
        self._float_type = _FLOAT_TYPES[options.encoding]

    @property
    def parameters(self) -> Mapping[str, int | bool]:
        """The response's parameters."""
        return {"total_tokens": self._result.token_count, "truncated_texts": self._result.truncated_count}

    def outputs(self) -> list[OutputTensor]:
        """The outputs asked for, in the model's order."""
        result = self._result
        outputs: list[OutputTensor] = []
        if result.dense is not None:
            outputs.append(self._floats("dense", result.dense))
        if result.sparse is not None:
            outputs += self._sparse_outputs(result.sparse)
        if result.multi_vector is not None:
            outputs += self._multi_vector_outputs(result.multi_vector)
        return [output for output in outputs if output.name in self._names]

    def _sparse_outputs(self, rows: Sequence[SparseRow]) -> list[OutputTensor]:
        top_k, min_weight = self._options.sparse_top_k, self._options.sparse_min_weight
        if top_k or min_weight:
            rows = [prune(row, top_k=top_k, min_weight=min_weight) for row in rows]
        indices = np.concatenate([row.ids for row in rows]).astype(np.int64)
        return [
            _offsets("sparse_indptr", map(len, (row.ids for row in rows))),
            OutputTensor("sparse_indices", "INT64", indices.shape, [as_buffer(indices)]),
            self._floats("sparse_values", np.concatenate([row.weights for row in rows])),
        ]

    def _multi_vector_outputs(self, vectors: Sequence[NDArray[np.floating]]) -> list[OutputTensor]:
        pieces = [self._floats("multi_vector", rows) for rows in vectors]
        buffers: list[Buffer] = [buffer for piece in pieces for buffer in piece.buffers]
        shape = (sum(map(len, vectors)), vectors[0].shape[1])
        return [
            _offsets("multi_vector_offsets", map(len, vectors)),
            OutputTensor("multi_vector", self._float_type, shape, buffers),
        ]

    def _floats(self, name: str, array: NDArray[np.floating]) -> OutputTensor:
        """An engine may have cast to float16 already."""
        numbers = array.astype(DTYPES[self._float_type], copy=False)
        return OutputTensor(name, self._float_type, numbers.shape, [as_buffer(numbers)])


def _offsets(name: str, lengths: Iterable[int]) -> OutputTensor:
    """Where each row begins, and where the last one ends."""
    offsets = np.fromiter(accumulate(lengths, initial=0), np.int64)
    return OutputTensor(name, "INT64", offsets.shape, [as_buffer(offsets)])


class _Rows(Sequence[str]):
    """The rows of an input as errors name them."""

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._count))]
        return f"{self._name}[{index}]"


def _output_names(modes: Mode) -> list[str]:
    return [name for name, mode in _OUTPUT_MODES.items() if mode in modes]


def _input_spec(inputs: Mapping[str, InputTensor]) -> Mapping[str, TensorSpec]:
    """A request gives texts or token ids; ids in either width."""
    ids = inputs.get(TOKEN_IDS)
    if ids is None or TEXT in inputs:
        return {TEXT: _TEXT_SPEC}
    return {TOKEN_IDS: _TOKEN_ID_SPECS.get(ids.datatype, _TOKEN_ID_SPECS["INT64"])}


def _chosen_outputs(
    available: Sequence[str], wanted: Mapping[str, WantedOutput], modes: Mode | None
) -> tuple[Sequence[str], Mode]:
    """
    The outputs to give, and what has to be computed for them.

    Raises:
        InvalidTensor: an output is of a mode that `modes` leaves out, or is wanted as classes.
    """
    for name, how in wanted.items():
        if how.classes:
            raise InvalidTensor(f"'classification' is not for output '{name}': an embedding has no classes")
        if modes is not None and _OUTPUT_MODES[name] not in modes:
            needed = next(mode for mode, flag in MODES.items() if flag == _OUTPUT_MODES[name])
            raise InvalidTensor(f"output '{name}' needs mode '{needed}', which 'modes' leaves out")
    names = [name for name in available if name in wanted] if wanted else available
    if modes is not None:
        names = [name for name in names if _OUTPUT_MODES[name] in modes]
        if not names:
            raise InvalidTensor(f"'modes' names nothing that the model has; it has {', '.join(available)}")
    computed = Mode(0)
    for name in names:
        computed |= _OUTPUT_MODES[name]
    return names, computed


def _decoded(tensor: InputTensor, subject: Subject) -> list[str]:
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


def _unpadded(tensor: InputTensor, subject: Subject) -> list[list[int]]:
    """The rows [R, L] as lists of ids, without the <pad> behind them."""
    data = np.frombuffer(tensor.data, DTYPES[tensor.datatype]) if isinstance(tensor.data, bytes) else tensor.data
    ids = np.asarray(data).reshape(tensor.shape)
    if ids.size and int(ids.min()) < 0:
        raise InvalidTensor(f"input '{tensor.name}' for model '{subject.model}' has a negative id; ids are from 0 on")
    is_token = ids != PAD_TOKEN_ID
    rows: list[list[int]] = []
    for index, row in enumerate(ids):
        end = int(np.flatnonzero(is_token[index])[-1]) + 1 if is_token[index].any() else 0
        rows.append(row[:end].tolist())
    return rows
