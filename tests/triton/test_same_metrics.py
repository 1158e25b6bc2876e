"""The metrics of a real Triton and of this server after the same calls: names, types, labels and counts."""

import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as kserve

from tests.scraped import Scraped, read_scrape
from tests.serving_process import serve
from tests.triton.models import MODELS, write_repository
from tests.triton.triton_server import packages, serve_triton

MODEL_NAMES = ("simple", "two_versions", "pick")
COUNTED = (
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_pending_request_count",
)
NOT_OURS = {"nv_pinned_memory_pool_total_bytes", "nv_pinned_memory_pool_used_bytes"}

Series = dict[tuple[tuple[str, str], ...], float]


@dataclass(frozen=True)
class BothScraped:
    triton: Scraped
    trivec: Scraped


def scrape(port: int) -> Scraped:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        return read_scrape(response.read().decode())


def infer(target: str, model: str, **inputs: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> grpc.StatusCode:
    """One ModelInfer; what it came to."""
    names = {"int32": "INT32", "int64": "INT64"}
    request = kserve.ModelInferRequest(
        model_name=model,
        inputs=[
            kserve.ModelInferRequest.InferInputTensor(name=name, datatype=names[array.dtype.name], shape=array.shape)
            for name, array in inputs.items()
        ],
        raw_input_contents=[array.tobytes() for array in inputs.values()],
    )
    with grpc.insecure_channel(target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer"
        )
        try:
            call(request.SerializeToString(), timeout=60)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def send(target: str) -> None:
    """
    Requests of several rows that succeed, and one that is wrong by itself, which neither counts. None that fails in the
    model: the python backend has Triton count it as a success.
    """
    rows = np.ones((3, 16), np.int32)
    for _ in range(4):
        assert infer(target, "simple", INPUT0=rows, INPUT1=rows) is grpc.StatusCode.OK
    assert infer(target, "two_versions", INPUT0=rows) is grpc.StatusCode.OK
    assert infer(target, "pick", INPUT0=np.array([[1, 2]], np.int64)) is grpc.StatusCode.OK
    assert infer(target, "simple", INPUT0=rows) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> BothScraped:
    folder = tmp_path_factory.mktemp("metrics")
    models = [model for model in MODELS if model.name in MODEL_NAMES]

    def triton(repository: Path) -> Scraped:
        with serve_triton(write_repository(repository, "python", *models, packages=packages())) as server:
            send(server.target)
            return scrape(server.metrics_port)

    def trivec(repository: Path) -> Scraped:
        with serve(write_repository(repository, "onnxruntime", *models)) as server:
            send(server.target)
            return scrape(server.metrics_port)

    return BothScraped(triton(folder / "triton"), trivec(folder / "trivec"))


def of_inference(scraped: Scraped, name: str) -> Series:
    return {labels: value for (found, labels), value in scraped.values.items() if found == name}


def test_whatever_triton_shows_is_shown(scraped: BothScraped) -> None:
    assert scraped.triton.kinds
    ours = {name: kind for name, kind in scraped.trivec.kinds.items() if name in scraped.triton.kinds}
    assert ours == {name: kind for name, kind in scraped.triton.kinds.items() if name not in NOT_OURS}


def test_the_series_have_tritons_labels(scraped: BothScraped) -> None:
    for name in scraped.triton.kinds.keys() - NOT_OURS:
        assert of_inference(scraped.trivec, name).keys() == of_inference(scraped.triton, name).keys(), name


@pytest.mark.parametrize("name", COUNTED)
def test_the_counts_are_tritons(scraped: BothScraped, name: str) -> None:
    assert of_inference(scraped.trivec, name) == of_inference(scraped.triton, name)
