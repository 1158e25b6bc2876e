"""ModelInfer for models that take tensors."""

import math
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.tensor_interface import DTYPES
from trivec_server.repository.registry import TensorVersion
from trivec_server.serving.tensors.request import TensorResult, TensorTask
from trivec_server.transport.calls import Call
from trivec_server.transport.kserve.checks import CheckedTensor, Signature, check_request
from trivec_server.transport.kserve.contents import InputTensor
from trivec_server.transport.kserve.datatypes import BYTES
from trivec_server.transport.kserve.outputs import WantedOutput, render_array
from trivec_server.transport.kserve.parameters import RequestParameters
from trivec_server.transport.kserve.response import OutputTensor
from trivec_server.transport.kserve.subject import Subject
from trivec_server.types import TensorSpec

_IN_MESSAGE = WantedOutput()


class TensorInference:
    """One request to a model that takes tensors."""

    def __init__(
        self,
        served: TensorVersion,
        call: Call,
        inputs: Mapping[str, InputTensor],
        wanted: Mapping[str, WantedOutput],
        parameters: RequestParameters,
        subject: Subject,
        size_bytes: int,
    ) -> None:
        """
        Raises:
            InvalidTensor: the request is wrong.
        """
        loaded = served.loaded
        batching = loaded.settings.batching
        signature = Signature(
            {spec.name: spec for spec in loaded.inputs},
            [spec.name for spec in loaded.outputs],
            batching.max_batch_size,
        )
        checked = check_request(signature, inputs, wanted, subject)
        self._specs = [spec for spec in loaded.outputs if not wanted or spec.name in wanted]
        self._wanted = wanted
        self._has_batch_dimension = batching.max_batch_size > 0
        self._pipeline = served.pipeline
        self._task = TensorTask(
            request_id=call.request_id,
            inputs={tensor.name: _array(tensor) for tensor in checked.tensors},
            outputs=tuple(spec.name for spec in self._specs),
            rows=checked.rows,
            priority=parameters.level(batching),
            timeout_us=parameters.timeout_us,
            deadline=call.deadline,
            size_bytes=size_bytes,
        )

    @property
    def held_bytes(self) -> int:
        """About what it takes in memory: its inputs, and the outputs whose sizes are known."""
        known = (
            math.prod(spec.shape) * _item_bytes(spec) for spec in self._specs if all(size >= 0 for size in spec.shape)
        )
        return self._task.size_bytes + self._task.rows * sum(known)

    def compute(self) -> Coroutine[None, None, TensorResult]:
        """Lets the model's pipeline work; raises as `TensorPipeline.infer` does."""
        return self._pipeline.infer(self._task)

    def answer(self, result: TensorResult) -> "TensorAnswer":
        """What is answered."""
        return TensorAnswer(result, self._specs, self._wanted, has_batch_dimension=self._has_batch_dimension)


class TensorAnswer:
    """The outputs of one request. `size_bytes`: about what they take in the response."""

    def __init__(
        self,
        result: TensorResult,
        specs: Sequence[TensorSpec],
        wanted: Mapping[str, WantedOutput],
        *,
        has_batch_dimension: bool,
    ) -> None:
        self.size_bytes = sum(array.nbytes for array in result.outputs.values())
        self.parameters: Mapping[str, int | bool] = {}
        self._result = result
        self._specs = specs
        self._wanted = wanted
        self._has_batch_dimension = has_batch_dimension

    def outputs(self) -> list[OutputTensor]:
        """
        The outputs asked for, in the model's order.

        Raises:
            InvalidTensor: an output is wanted as classes and has none.
        """
        return [
            render_array(
                spec.name,
                spec.datatype,
                self._result.outputs[spec.name],
                self._wanted.get(spec.name, _IN_MESSAGE),
                has_batch_dimension=self._has_batch_dimension,
            )
            for spec in self._specs
        ]


def _array(tensor: CheckedTensor) -> NDArray[Any]:
    """The tensor as an array of its shape; its data has been checked to be of that size."""
    shape, data = tensor.shape, tensor.data
    if isinstance(data, list):
        elements = np.empty(len(data), np.object_)
        elements[:] = data
        return elements.reshape(shape)
    if not isinstance(data, bytes):
        return data.reshape(shape)
    if tensor.datatype == "BOOL":
        # Any other byte than 0 is true; NumPy itself allows no byte but 0 and 1.
        flags: NDArray[np.bool_] = np.frombuffer(data, np.uint8) != 0
        return flags.reshape(shape)
    return np.frombuffer(data, DTYPES[tensor.datatype]).reshape(shape)


def _item_bytes(spec: TensorSpec) -> int:
    return 0 if spec.datatype == BYTES else DTYPES[spec.datatype].itemsize
