"""ONNX files that are loaded and served: requests join, are padded and cut apart, and fail alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from trivec_server.errors import ComputeError, InvalidTensor
from trivec_server.metrics import Metrics
from trivec_server.repository.model_config import read_model_config
from trivec_server.repository.tensor_loading import load_tensors
from trivec_server.serving.tensors.pipeline import TensorPipeline
from trivec_server.serving.tensors.request import TensorTask
from trivec_server.settings import Limits
from trivec_server.types import ModelVersion

from tests.onnx_models import node, write_identity, write_onnx

HEAD = "backend: 'onnxruntime' instance_group { kind: KIND_CPU } max_batch_size: 8\n"
JOINING = "dynamic_batching { max_queue_delay_microseconds: 10000000 preferred_batch_size: 3 }\n"
"""Three rows that arrive together run together, however the machine is loaded."""

Serve = Callable[[str], AbstractAsyncContextManager[TensorPipeline]]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return tmp_path / "little" / "1" / "model.onnx"


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def serve_it(config: str) -> AsyncIterator[TensorPipeline]:
        key = ModelVersion("little", 1)
        path = tmp_path / "little" / "config.pbtxt"
        path.write_text(HEAD + config, encoding="utf-8")
        loaded = load_tensors(key, tmp_path / "little" / "1", read_model_config(path, "little"))
        pipeline = TensorPipeline(
            name="little",
            devices=loaded.devices,
            info=loaded.info,
            inputs=loaded.inputs,
            outputs=loaded.outputs,
            batching=loaded.settings.batching,
            limits=Limits(),
            metrics=Metrics().model(key),
        )
        pipeline.start()
        try:
            yield pipeline
        finally:
            await pipeline.close()

    return serve_it


async def infer(pipeline: TensorPipeline, *arrays: NDArray[Any]) -> list[Any]:
    """One request for each array, all at once: the output `y` of each, or its error."""
    tasks = [TensorTask(str(number), {"x": array}, ("y",), len(array)) for number, array in enumerate(arrays)]
    done = await asyncio.gather(*(pipeline.infer(task) for task in tasks), return_exceptions=True)
    return [result if isinstance(result, BaseException) else result.outputs["y"].tolist() for result in done]


def text(*elements: bytes) -> NDArray[Any]:
    return np.array([elements], np.object_)


async def test_requests_of_equal_shapes_run_together(serve: Serve, model_file: Path) -> None:
    write_identity(model_file)
    async with serve(JOINING) as pipeline:
        rows = [np.full((1, 2), number, np.float32) for number in range(3)]
        assert await infer(pipeline, *rows) == [row.tolist() for row in rows]
        assert list(pipeline.statistics.snapshot().batches) == [3]


async def test_ragged_requests_are_padded_and_cut_apart(serve: Serve, model_file: Path) -> None:
    write_identity(model_file)
    ragged = "input { name: 'x' data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }\n"
    async with serve(JOINING + ragged + "output { name: 'y' data_type: TYPE_FP32 dims: -1 }") as pipeline:
        rows = [np.ones((1, size), np.float32) for size in (1, 4, 2)]
        assert await infer(pipeline, *rows) == [row.tolist() for row in rows]
        assert list(pipeline.statistics.snapshot().batches) == [3]


async def test_a_scalar_of_each_row_has_the_shape_that_is_declared(serve: Serve, model_file: Path) -> None:
    write_identity(model_file, "INT64", ("batch",))
    async with serve(JOINING) as pipeline:
        assert await infer(pipeline, np.array([[7]]), np.array([[8], [9]])) == [[[7]], [[8], [9]]]


async def test_text_that_is_not_utf8_fails_its_own_request(serve: Serve, model_file: Path) -> None:
    write_identity(model_file, "BYTES")
    async with serve(JOINING) as pipeline:
        first, second, third = await infer(pipeline, text(b"a", b"\xc3\xa4"), text(b"b", b"\xff"), text(b"c", b""))
        assert (first, third) == ([[b"a", b"\xc3\xa4"]], [[b"c", b""]])
        assert isinstance(second, InvalidTensor)
        assert "element 1 of input 'x' is not UTF-8" in str(second)


async def test_what_the_model_fails_on_is_told(serve: Serve, model_file: Path) -> None:
    write_onnx(
        model_file,
        [node("Gather", "table x", "y")],
        {"x": ("INT64", ["batch", "n"])},
        {"y": ("FP32", ["batch", "n"])},
        defaults={"table": np.arange(3, dtype=np.float32)},
    )
    async with serve("") as pipeline:
        (failed,) = await infer(pipeline, np.array([[9]]))
        assert isinstance(failed, ComputeError)
        assert "the model failed on these tensors" in str(failed)
        assert await infer(pipeline, np.array([[2]])) == [[[2.0]]]
