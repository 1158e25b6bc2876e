"""ModelInfer for embedding models: texts or token ids in; dense vectors, a CSR triple and multi-vectors out."""

import sys
from collections.abc import Coroutine, Sequence
from typing import overload

from trivec_server.errors import InvalidTensor
from trivec_server.logs import log_texts
from trivec_server.repository.registry import EmbeddingVersion
from trivec_server.serving.request import EmbedResult, EmbedTask
from trivec_server.settings import Limits
from trivec_server.transport.calls import Call
from trivec_server.transport.kserve.embed_inputs import TEXT, EmbedInputs
from trivec_server.transport.kserve.embed_outputs import EmbedAnswer, choose_outputs, output_names
from trivec_server.transport.kserve.embed_parameters import parse_embed_parameters
from trivec_server.transport.kserve.parameters import RequestParameters
from trivec_server.transport.parse import check_text_bytes
from trivec_server.types import InputType


class EmbedInference:
    """One request to an embedding model."""

    __slots__ = ("_names", "_options", "_pipeline", "_task")

    def __init__(
        self,
        served: EmbeddingVersion,
        call: Call,
        inputs: EmbedInputs,
        parameters: RequestParameters,
        limits: Limits,
        size_bytes: int,
    ) -> None:
        """
        Raises:
            InvalidTensor, InvalidRequest: the request is wrong.
        """
        log_texts(call.request_id, inputs.texts)
        loaded = served.loaded
        options = parse_embed_parameters(parameters.custom, loaded.max_tokens)
        self._names, modes = choose_outputs(output_names(loaded.info.modes), inputs.outputs, options.modes)
        if size_bytes > limits.max_text_bytes:
            check_text_bytes(TEXT, inputs.texts, limits)
        if inputs.token_ids and options.input_type is not InputType.NONE:
            raise InvalidTensor("'input_type' must be left out with 'token_ids': put the prefix's ids into them")
        self._task = EmbedTask(
            request_id=call.request_id,
            modes=modes,
            texts=inputs.texts,
            token_ids=inputs.token_ids,
            input_types=options.input_type,
            truncation=options.truncation,
            max_tokens=options.max_tokens,
            priority=parameters.level(loaded.settings.batching),
            deadline=call.deadline,
            size_bytes=size_bytes,
            fields=_TEXT_ROWS if inputs.texts else (),
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

    def compute(self) -> Coroutine[None, None, EmbedResult]:
        """Lets the model's pipeline work; raises as `Pipeline.embed` does."""
        return self._pipeline.embed(self._task)

    def answer(self, result: EmbedResult) -> EmbedAnswer:
        """What is answered."""
        size = self._pipeline.result_bytes(self._task, self._task.text_count, result.token_count)
        return EmbedAnswer(result, self._names, self._options, size)


class _Rows(Sequence[str]):
    """The rows of an input as errors name them; there are as many as anybody asks for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __len__(self) -> int:
        return sys.maxsize

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return f"{self._name}[{index}]"


_TEXT_ROWS = _Rows(TEXT)
