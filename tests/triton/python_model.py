"""
The models of `models.py` as Triton's python backend runs them. Copied into each version as `model.py`, behind two
lines that make NumPy known.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found, unused-ignore]

Arrays = list[Any]


def _sum_and_difference(inputs: Arrays, _: int) -> Arrays:
    return [inputs[0] + inputs[1], inputs[0] - inputs[1]]


def _echo(inputs: Arrays, _: int) -> Arrays:
    return inputs


def _times_version(inputs: Arrays, version: int) -> Arrays:
    return [inputs[0] * np.int32(version)]


def _pick(inputs: Arrays, _: int) -> Arrays:
    return [np.arange(10, 50, 10, dtype=np.float32)[inputs[0]]]


def _count(inputs: Arrays, _: int) -> Arrays:
    time.sleep(int(inputs[0].reshape(-1)[0]) * 1e-6)
    return inputs


_COMPUTE: dict[str, Callable[[Arrays, int], Arrays]] = {
    "simple": _sum_and_difference,
    "two_versions": _times_version,
    "pick": _pick,
    "slow": _count,
    "slow_refusing": _count,
}


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        name = args["model_name"]
        if name == "broken":
            raise pb_utils.TritonModelException("this model cannot be loaded")
        self._compute = _COMPUTE.get(name, _echo)
        self._version = int(args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses = []
        for request in requests:
            tensors = request.inputs()
            arrays = [tensor.as_numpy() for tensor in sorted(tensors, key=lambda tensor: str(tensor.name().zfill(9)))]
            try:
                computed = self._compute(arrays, self._version)
            except IndexError as error:
                responses.append(pb_utils.InferenceResponse([], pb_utils.TritonError(str(error))))
                continue
            wanted = request.requested_output_names()
            named = {f"OUTPUT{index}": array for index, array in enumerate(computed)}
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor(name, named[name]) for name in named if name in wanted])
            )
        return responses
