"""One request to the server and how its answer is put together; what both clients run, retry and keep in flight."""

import enum
import itertools
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from trivec.v1 import embedding_pb2 as pb

from trivec_client.errors import MalformedResponseError, UnavailableError, parse_status

Response_contra = TypeVar("Response_contra", bound=Message, contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Response = TypeVar("Response", bound=Message)


class Rpc(enum.Enum):
    """The methods of EmbeddingService, by name."""

    EMBED = "Embed"
    EMBED_STREAM = "EmbedStream"
    SCORE = "Score"
    TOKENIZE = "Tokenize"
    GET_MODEL = "GetModel"
    LIST_MODELS = "ListModels"


class Assembly(Protocol[Response_contra, Result_co]):
    """Puts the answer to one try together out of its messages."""

    def add(self, response: Response_contra) -> None:
        """
        Takes the next message.

        Raises:
            TrivecClientError: it is an error, or contradicts the contract.
        """

    def finish(self) -> Result_co:
        """
        The whole answer, after the last message.

        Raises:
            TrivecClientError: something is missing.
        """


@dataclass(frozen=True, slots=True)
class Job(Generic[Response, Result]):
    """
    One request. `first_index` is the caller's index of its first text. `assemble` gives a fresh Assembly for each try:
    what a broken try has received is dropped.
    """

    rpc: Rpc
    request: Message
    request_id: str
    first_index: int
    assemble: Callable[[], Assembly[Response, Result]]


class SingleResponse(Generic[Response, Result]):
    """The Assembly of a unary call: one message, parsed."""

    def __init__(self, parse: Callable[[Response], Result]) -> None:
        self._parse = parse
        self._result: Result | None = None

    def add(self, response: Response) -> None:
        """Takes the one message."""
        self._result = self._parse(response)

    def finish(self) -> Result:
        """What the message says."""
        if self._result is None:
            raise MalformedResponseError.because("a unary call ended without an answer")
        return self._result


class StreamAssembly(Generic[Result]):
    """The Assembly of one request on an EmbedStream of its own."""

    def __init__(self, request_id: str, embeddings: Assembly[pb.EmbedResponse, Result]) -> None:
        self._request_id = request_id
        self._embeddings = embeddings
        self._final = False

    def add(self, response: pb.EmbedStreamResponse) -> None:
        """Takes the next chunk, or raises the error that came in its place."""
        if response.id != self._request_id:
            raise MalformedResponseError.because(f"the stream answers {response.id!r}, not {self._request_id!r}")
        if response.HasField("error"):
            raise parse_status(response.error)
        if self._final:
            raise MalformedResponseError.because("a message after the final one")
        self._embeddings.add(response.response)
        self._final = response.final

    def finish(self) -> Result:
        """The whole answer; a stream that ended before its final message counts as broken, and is tried again."""
        if not self._final:
            raise UnavailableError(grpc.StatusCode.UNAVAILABLE, "the stream ended before the whole answer was sent")
        return self._embeddings.finish()


class RequestIds:
    """Ids for requests: unique, short, and the same for all tries of a request."""

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """A new id."""
        return f"{self._prefix}-{next(self._numbers)}"
