"""What callers ask for, as requests of the contract; one place for both clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from trivec.v1 import embedding_pb2 as pb

from trivec_client.vectors import ENCODINGS, WireEncoding

ModeName = Literal["dense", "sparse", "multi_vector"]
InputTypeName = Literal["none", "query", "passage"]
TruncationName = Literal["error", "right", "left"]

MODES: dict[ModeName, pb.Mode.ValueType] = {
    "dense": pb.MODE_DENSE,
    "sparse": pb.MODE_SPARSE,
    "multi_vector": pb.MODE_MULTI_VECTOR,
}
INPUT_TYPES: dict[InputTypeName, pb.InputType.ValueType] = {
    "none": pb.INPUT_TYPE_NONE,
    "query": pb.INPUT_TYPE_QUERY,
    "passage": pb.INPUT_TYPE_PASSAGE,
}
TRUNCATIONS: dict[TruncationName, pb.Truncation.ValueType] = {
    "error": pb.TRUNCATION_ERROR,
    "right": pb.TRUNCATION_RIGHT,
    "left": pb.TRUNCATION_LEFT,
}

_Name = TypeVar("_Name", bound=str)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """
    What a run over texts asks for each of them.

    `max_length` counts tokens, special tokens included; 0: the model's own limit. `sparse_top_k` 0: all entries.
    `priority` 0: the model's default level.
    """

    modes: tuple[ModeName, ...]
    model: str = ""
    version: int = 0
    input_type: InputTypeName = "none"
    truncation: TruncationName = "right"
    max_length: int = 0
    wire_encoding: WireEncoding = "float32"
    sparse_top_k: int = 0
    sparse_min_weight: float = 0.0
    return_tokens: bool = False
    priority: int = 0

    def __post_init__(self) -> None:
        if not self.modes:
            raise ValueError("nothing is asked for: set return_dense, return_sparse or return_colbert_vecs")
        pick("input_type", INPUT_TYPES, self.input_type)
        pick("truncation", TRUNCATIONS, self.truncation)
        pick("wire_encoding", ENCODINGS, self.wire_encoding)
        for name in ("max_length", "sparse_top_k", "sparse_min_weight", "priority", "version"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")


def pick(field: str, choices: dict[_Name, _Value], name: _Name) -> _Value:
    """
    The value of a named choice.

    Raises:
        ValueError: there is no such choice; names those there are.
    """
    try:
        return choices[name]
    except KeyError:
        raise ValueError(f"{field}: {name!r} is none of {', '.join(choices)}") from None


def modes_of(*, dense: bool, sparse: bool, multi_vector: bool) -> tuple[ModeName, ...]:
    """The modes that the `return_...` flags ask for."""
    wanted: dict[ModeName, bool] = {"dense": dense, "sparse": sparse, "multi_vector": multi_vector}
    return tuple(mode for mode, asked in wanted.items() if asked)


def build_embed_request(texts: Sequence[str], options: EmbedOptions, request_id: str) -> pb.EmbedRequest:
    """An EmbedRequest of these texts."""
    return pb.EmbedRequest(
        model=options.model,
        version=options.version,
        texts=texts,
        modes=[MODES[mode] for mode in options.modes],
        input_type=INPUT_TYPES[options.input_type],
        truncation=TRUNCATIONS[options.truncation],
        max_tokens=options.max_length,
        encoding=ENCODINGS[options.wire_encoding],
        sparse_top_k=options.sparse_top_k,
        sparse_min_weight=options.sparse_min_weight,
        return_tokens=options.return_tokens,
        priority=options.priority,
        request_id=request_id,
    )
