"""Wire to domain: request messages of `trivec.v1` become tasks, or an InvalidRequest that names field and index."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from trivec.v1 import embedding_pb2 as pb

from trivec_server.errors import InvalidRequest
from trivec_server.serving.request import EmbedTask, VectorEncoding
from trivec_server.settings import DEFAULT_CHUNK_BYTES, MIN_CHUNK_BYTES, Limits
from trivec_server.transport.utf8 import find_invalid_utf8
from trivec_server.types import InputType, Mode, ScoreWeights, Truncation

_MODES: Mapping[int, Mode] = {
    pb.MODE_UNSPECIFIED: Mode.DENSE,
    pb.MODE_DENSE: Mode.DENSE,
    pb.MODE_SPARSE: Mode.SPARSE,
    pb.MODE_MULTI_VECTOR: Mode.MULTI_VECTOR,
    pb.MODE_HYBRID: Mode.HYBRID,
}
_INPUT_TYPES: Mapping[int, InputType] = {
    pb.INPUT_TYPE_UNSPECIFIED: InputType.NONE,
    pb.INPUT_TYPE_NONE: InputType.NONE,
    pb.INPUT_TYPE_QUERY: InputType.QUERY,
    pb.INPUT_TYPE_PASSAGE: InputType.PASSAGE,
}
_TRUNCATIONS: Mapping[int, Truncation] = {
    pb.TRUNCATION_UNSPECIFIED: Truncation.ERROR,
    pb.TRUNCATION_ERROR: Truncation.ERROR,
    pb.TRUNCATION_RIGHT: Truncation.RIGHT,
    pb.TRUNCATION_LEFT: Truncation.LEFT,
}
_ENCODINGS: Mapping[int, VectorEncoding] = {
    pb.VECTOR_ENCODING_UNSPECIFIED: VectorEncoding.FLOAT_LIST,
    pb.VECTOR_ENCODING_FLOAT_LIST: VectorEncoding.FLOAT_LIST,
    pb.VECTOR_ENCODING_FLOAT32: VectorEncoding.FLOAT32,
    pb.VECTOR_ENCODING_FLOAT16: VectorEncoding.FLOAT16,
    pb.VECTOR_ENCODING_BFLOAT16: VectorEncoding.BFLOAT16,
    pb.VECTOR_ENCODING_INT8: VectorEncoding.INT8,
    pb.VECTOR_ENCODING_BINARY: VectorEncoding.BINARY,
}

_MAX_REQUEST_ID_CHARACTERS = 128
_MIN_TOKENS = 2

MessageT = TypeVar("MessageT", bound=Message)
ValueT = TypeVar("ValueT")


class OutputOptions(NamedTuple):
    """How a response is written, beyond the task itself."""

    encoding: VectorEncoding
    sparse_top_k: int
    sparse_min_weight: float
    return_tokens: bool


def parse_message(raw: bytes, message_type: type[MessageT], *, within: str = "") -> MessageT:
    """
    Decodes a request message. Names of fields in errors leave out the path `within`.

    Raises:
        InvalidRequest: it is not such a message; invalid UTF-8 is named by field and index.
    """
    try:
        return message_type.FromString(raw)
    except DecodeError as error:
        field = find_invalid_utf8(raw, message_type)
        if field is not None:
            raise InvalidRequest(field.removeprefix(within), "is not valid UTF-8; encode the text as UTF-8") from error
        raise InvalidRequest("request", f"is not a {message_type.DESCRIPTOR.full_name} message") from error


def parse_request_id(value: str, default: str) -> str:
    """The caller's request id, or the default where it gave none."""
    if not value:
        return default
    if len(value) > _MAX_REQUEST_ID_CHARACTERS or not (value.isascii() and value.isprintable()):
        raise InvalidRequest("request_id", f"must be at most {_MAX_REQUEST_ID_CHARACTERS} printable ASCII characters")
    return value


def parse_embed(
    message: pb.EmbedRequest,
    *,
    request_id: str,
    deadline: float | None,
    size_bytes: int,
    limits: Limits,
    max_result_bytes: int | None = None,
) -> EmbedTask:
    """EmbedRequest as a task. `deadline` is an instant of `time.monotonic`."""
    texts, token_ids = list(message.texts), [entry.ids for entry in message.token_ids]
    count = len(texts) + len(token_ids)
    if texts and token_ids:
        raise InvalidRequest("token_ids", "must be left out when `texts` is given")
    if count == 0:
        raise InvalidRequest("texts", "must hold at least one text (an empty text is legal), or give `token_ids`")
    _check_count("texts" if texts else "token_ids", count, limits.max_texts_per_request)
    if size_bytes > limits.max_text_bytes:
        check_text_bytes("texts", texts, limits)
    input_type = _known(_INPUT_TYPES, message.input_type, "input_type", pb.InputType)
    if token_ids and input_type is not InputType.NONE:
        raise InvalidRequest("input_type", "must be left out with `token_ids`: put the prefix's ids into them")
    if not (message.sparse_min_weight >= 0 and math.isfinite(message.sparse_min_weight)):
        raise InvalidRequest("sparse_min_weight", f"is {message.sparse_min_weight}; must be a number of at least 0")
    return EmbedTask(
        request_id=request_id,
        modes=_parse_modes(message.modes),
        texts=texts,
        token_ids=token_ids,
        input_types=input_type,
        truncation=_known(_TRUNCATIONS, message.truncation, "truncation", pb.Truncation),
        max_tokens=parse_max_tokens(message.max_tokens),
        priority=message.priority,
        deadline=deadline,
        size_bytes=size_bytes,
        max_result_bytes=max_result_bytes,
        encoding=_known(_ENCODINGS, message.encoding, "encoding", pb.VectorEncoding),
    )


def parse_output_options(message: pb.EmbedRequest, task: EmbedTask) -> OutputOptions:
    """What the request says of its response; `parse_embed` has checked it."""
    return OutputOptions(task.encoding, message.sparse_top_k, message.sparse_min_weight, message.return_tokens)


def parse_score(
    message: pb.ScoreRequest, *, request_id: str, deadline: float | None, size_bytes: int, limits: Limits
) -> EmbedTask:
    """ScoreRequest as a hybrid task: text 0 is the query, the others are the passages."""
    if not len(message.passages):
        raise InvalidRequest("passages", "must hold at least one passage")
    _check_count("passages", len(message.passages), limits.max_texts_per_request - 1)
    check_text_bytes("query", [message.query], limits)
    check_text_bytes("passages", message.passages, limits)
    return EmbedTask(
        request_id=request_id,
        modes=Mode.HYBRID,
        texts=[message.query, *message.passages],
        input_types=[InputType.QUERY, *[InputType.PASSAGE] * len(message.passages)],
        truncation=_known(_TRUNCATIONS, message.truncation, "truncation", pb.Truncation),
        max_tokens=parse_max_tokens(message.max_tokens),
        priority=message.priority,
        deadline=deadline,
        size_bytes=size_bytes,
        fields=("query", *(f"passages[{i}]" for i in range(len(message.passages)))),
    )


def parse_score_weights(message: pb.ScoreRequest, default: ScoreWeights) -> ScoreWeights:
    """The request's factors, or the model's."""
    if not message.HasField("weights"):
        return default
    given = message.weights
    for name, value in (("dense", given.dense), ("sparse", given.sparse), ("multi_vector", given.multi_vector)):
        if not (value >= 0 and math.isfinite(value)):
            raise InvalidRequest(f"weights.{name}", f"is {value}; must be a number of at least 0")
    if given.dense + given.sparse + given.multi_vector == 0:
        raise InvalidRequest("weights", "are all 0; at least one must be above 0")
    return ScoreWeights(given.dense, given.sparse, given.multi_vector)


def parse_tokenize(message: pb.TokenizeRequest, limits: Limits) -> tuple[InputType, Truncation]:
    """The checked choices of a TokenizeRequest."""
    if not len(message.texts):
        raise InvalidRequest("texts", "must hold at least one text")
    _check_count("texts", len(message.texts), limits.max_texts_per_request)
    check_text_bytes("texts", message.texts, limits)
    return (
        _known(_INPUT_TYPES, message.input_type, "input_type", pb.InputType),
        _known(_TRUNCATIONS, message.truncation, "truncation", pb.Truncation),
    )


def parse_max_tokens(value: int) -> int | None:
    """`max_tokens` of a request, None for the model's own. The upper bound is the model's: `check_max_tokens`."""
    if value == 0:
        return None
    if value < _MIN_TOKENS:
        raise InvalidRequest("max_tokens", f"is {value}; must be at least {_MIN_TOKENS}, for <s> and </s>")
    return value


def check_max_tokens(asked: int | None, model_limit: int) -> None:
    """
    Checks a request's `max_tokens` against the model's.

    Raises:
        InvalidRequest: the request asks for longer texts than the model takes.
    """
    if asked is not None and asked > model_limit:
        raise InvalidRequest("max_tokens", f"is {asked}; this model takes at most {model_limit}")


def parse_chunk_bytes(value: int, limits: Limits) -> int:
    """`chunk_bytes` of a stream's request."""
    if value == 0:
        return min(DEFAULT_CHUNK_BYTES, limits.max_chunk_bytes)
    if not MIN_CHUNK_BYTES <= value <= limits.max_chunk_bytes:
        raise InvalidRequest("chunk_bytes", f"is {value}; must be {MIN_CHUNK_BYTES} to {limits.max_chunk_bytes}")
    return value


def _parse_modes(values: Sequence[int]) -> Mode:
    modes = Mode(0)
    for index, value in enumerate(values):
        mode = _known(_MODES, value, f"modes[{index}]", pb.Mode)
        if value == pb.MODE_UNSPECIFIED and len(values) > 1:
            raise InvalidRequest(f"modes[{index}]", "is MODE_UNSPECIFIED; leave it out beside other modes")
        modes |= mode
    return modes or Mode.DENSE


def _check_count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequest(field, f"holds {count} texts; at most {limit} are allowed: split the request")


def check_text_bytes(field: str, texts: Sequence[str], limits: Limits) -> None:
    """
    Checks the size of each text: one far larger than any model takes would hold up all others while it is tokenized.

    Raises:
        InvalidRequest: a text is larger than `max_text_bytes`.
    """
    for index, text in enumerate(texts):
        # A character takes at most four bytes: most texts need not be encoded to know that they are small enough.
        if len(text) * 4 > limits.max_text_bytes and len(text.encode()) > limits.max_text_bytes:
            raise InvalidRequest(
                f"{field}[{index}]" if field != "query" else field,
                f"has {len(text.encode()):,} bytes; at most {limits.max_text_bytes:,} are allowed: send a part of it",
            )


def _known(table: Mapping[int, ValueT], value: int, field: str, names: Any) -> ValueT:
    found = table.get(value)
    if found is None:
        raise InvalidRequest(field, f"is {value}, which is not known; use one of: {', '.join(names.keys())}")
    return found
