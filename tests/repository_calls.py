"""Calls that concern the model repository, from a process that is a client of a running server."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from inference import grpc_service_pb2 as pb

_SERVICE = "/inference.GRPCInferenceService/"
_PATIENCE_S = 60.0
_AnswerT = TypeVar("_AnswerT", bound=Message)

Index = dict[tuple[str, str], tuple[str, str]]
"""State and reason by name and version."""


class RepositoryCalls:
    """A client of the repository's calls."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)

    def __enter__(self) -> "RepositoryCalls":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    def index(self) -> Index:
        answer = self._call("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
        return {(entry.name, entry.version): (entry.state, entry.reason) for entry in answer.models}

    def load(self, name: str, config: str | None = None) -> None:
        """Loads a model, with this configuration in JSON if there is one."""
        request = pb.RepositoryModelLoadRequest(model_name=name)
        if config is not None:
            request.parameters["config"].string_param = config
        self._call("RepositoryModelLoad", request, pb.RepositoryModelLoadResponse)

    def wait_for(self, condition: Callable[[Index], bool]) -> Index:
        """Asks for the index until it is as it should be."""
        ends_at = time.monotonic() + _PATIENCE_S
        while not condition(index := self.index()):
            assert time.monotonic() < ends_at, f"the index does not change any more: {index}"
        return index

    def wait_until_ready(self, name: str, version: str = "1") -> Index:
        return self.wait_for(lambda index: index.get((name, version), ("", ""))[0] == "READY")

    def _call(self, method: str, request: Message, answer: type[_AnswerT]) -> _AnswerT:
        call = self._channel.unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        result: _AnswerT = call(request, timeout=_PATIENCE_S)
        return result
