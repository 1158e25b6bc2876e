"""The engine `flagembedding`: FlagEmbedding's own model behind the seam that all engines share."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import Engine, EngineLost, EngineRequest, TokenBatch
from trivec_server.errors import LoadError
from trivec_server.repository.engines import ENGINES
from trivec_server.serving.tokenizer import Tokenizer
from trivec_server.serving.word_cache import unpack_ids
from trivec_server.types import InputType, InstanceKind, Mode

from tests.model_settings import set_backend
from tests.numerics import grpc_calls, texts
from tests.numerics.agreement import embed_sequences
from tests.numerics.conftest import RandomModel, pull
from tests.numerics.embeddings import compare_embeddings
from tests.numerics.models import SHAPES, ModelShape
from tests.serving_process import serve
from tests.tiny_model import write_tiny_model

_TEXTS = tuple(text for text in texts.all_texts() if len(text) <= 600)

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def repository(random_models: Mapping[str, RandomModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random models, pulled."""
    directory = tmp_path_factory.mktemp("repository")
    for name, model in random_models.items():
        pull(str(model.directory), directory, "--name", name)
    return directory


@pytest.fixture(scope="module")
def tiny_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is loaded at once."""
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_model(directory / "source")
    pull(str(directory / "source"), directory / "repository", "--name", "tiny")
    return directory / "repository" / "tiny" / "1"


@pytest.fixture
def tiny_engine(tiny_version: Path) -> Iterator[Engine]:
    engine = _build(tiny_version)
    yield engine
    engine.close()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_it_agrees_with_onnxruntime(shape: ModelShape, repository: Path) -> None:
    version = repository / shape.name / "1"
    tokenizer = Tokenizer(version / "tokenizer.json")
    sequences = [unpack_ids(packed) for packed in tokenizer.encode(_TEXTS, InputType.NONE)]
    ours, reference = (ENGINES[name](EngineRequest(version_dir=version)) for name in ("onnxruntime", "flagembedding"))

    differences = compare_embeddings(
        embed_sequences(ours, sequences), embed_sequences(reference, sequences), _TEXTS, tolerance=1e-5
    )

    ours.close()
    reference.close()
    assert set(differences.largest) == {"dense", "sparse", "multi_vector"}
    differences.check()


def test_served_it_answers_what_onnxruntime_answers(tiny_version: Path) -> None:
    answers = []
    for name in ("onnxruntime", "flagembedding"):
        set_backend(tiny_version.parent, name)
        with serve(tiny_version.parents[1]) as server, grpc_calls.connect(server.target) as stub:
            answers.append(grpc_calls.embed(stub, grpc_calls.embed_request("tiny", ["hello the world"])))
            assert stub.GetModel(pb.GetModelRequest(model="tiny")).model.engine == name

    compare_embeddings(answers[1], answers[0], ["hello the world"], tolerance=1e-5).check()


def test_only_the_modes_asked_for_are_given(tiny_engine: Engine) -> None:
    batch = TokenBatch(np.array([0, 5, 2, 0, 2]), np.array([3, 2]))

    dense, sparse = tiny_engine.run(batch, Mode.DENSE), tiny_engine.run(batch, Mode.SPARSE)

    assert dense.dense is not None
    assert dense.dense.shape == (2, 32)
    assert (dense.token_weights, dense.multi_vector) == (None, None)
    assert sparse.token_weights is not None
    assert sparse.token_weights.shape == (5,)
    assert (sparse.dense, sparse.multi_vector) == (None, None)


def test_it_says_that_it_is_the_reference(tiny_engine: Engine) -> None:
    info = tiny_engine.info

    assert (info.engine, info.precision, info.pads) == ("flagembedding", "float32", True)
    assert any("for comparison" in note for note in info.notes)


def test_no_files_are_left(tiny_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    _build(tiny_version).close()

    assert list(tmp_path.iterdir()) == []


class FailingModel:
    """A model whose device fails as CUDA's do."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def model(self, *_: object, **__: object) -> Mapping[str, object]:
        raise self._error


@pytest.mark.parametrize(
    ("kind", "message", "meaning"),
    [
        ("AcceleratorError", "CUDA error: an illegal memory access was encountered\nmore", EngineLost),
        ("AcceleratorError", "CUDA error: out of memory", MemoryError),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`", EngineLost),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", MemoryError),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", MemoryError),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", MemoryError),
        ("RuntimeError", "The size of tensor a must match the size of tensor b", RuntimeError),
    ],
)
def test_an_error_of_a_run_is_understood(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: str, message: str, meaning: type[Exception]
) -> None:
    monkeypatch.setattr(tiny_engine, "_model", FailingModel(torch_error(kind, message)))
    with pytest.raises(meaning) as caught:
        tiny_engine.run(TokenBatch(np.array([0, 2]), np.array([2])), Mode.DENSE)
    assert type(caught.value) is meaning
    assert "\n" not in str(caught.value)


def torch_error(kind: str, message: str) -> Exception:
    import torch  # noqa: PLC0415 - `make test` collects this module without torch

    error: Exception = getattr(torch, kind, RuntimeError)(message)
    return error


@pytest.mark.parametrize(
    ("kind", "message", "reason"),
    [
        ("AcceleratorError", "CUDA error: device busy", "failed: CUDA error: device busy; look at `nvidia-smi`"),
        ("OutOfMemoryError", "CUDA out of memory.", "does not fit into the memory of cpu"),
    ],
)
def test_a_device_that_fails_while_the_model_is_loaded_is_a_reason_not_to_load(
    tiny_version: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str, reason: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise torch_error(kind, message)

    monkeypatch.setattr("trivec_server.backends.flagembedding.BGEM3FlagModel", failing)

    with pytest.raises(LoadError, match=reason):
        _build(tiny_version)


def test_a_model_without_a_linear_sparse_head_is_refused(mini_repository: Path) -> None:
    with pytest.raises(LoadError, match="sparse weights come from a table of ids"):
        _build(mini_repository / "m3-mini" / "1")


def test_kind_gpu_without_a_gpu_is_refused(tiny_version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(LoadError, match="KIND_GPU, but torch"):
        _build(tiny_version, kind=InstanceKind.GPU)


def test_kind_auto_without_a_gpu_runs_on_the_cpu_and_says_so(
    tiny_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    engine = _build(tiny_version, kind=InstanceKind.AUTO)

    assert engine.info.device == "cpu"
    assert any("no CUDA GPU" in note for note in engine.info.notes)
    engine.close()


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8", "float8"])
def test_a_precision_that_it_lacks_on_the_cpu_is_refused(tiny_version: Path, precision: str) -> None:
    with pytest.raises(LoadError, match=f"precision {precision} .* use one of: float32"):
        _build(tiny_version, precision=precision)


def test_gpus_on_the_cpu_are_refused(tiny_version: Path) -> None:
    with pytest.raises(LoadError, match="names `gpus`"):
        _build(tiny_version, device_index=0)


def test_an_accelerator_is_refused(tiny_version: Path) -> None:
    with pytest.raises(LoadError, match="no accelerator `tensorrt`"):
        _build(tiny_version, accelerator="tensorrt")


def test_a_missing_tokenizer_is_named(tiny_version: Path, tmp_path: Path) -> None:
    for path in tiny_version.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).symlink_to(path)

    with pytest.raises(LoadError, match=r"tokenizer\.json is missing"):
        _build(tmp_path)


def _build(
    version_dir: Path,
    *,
    kind: InstanceKind = InstanceKind.CPU,
    precision: str | None = None,
    device_index: int | None = None,
    accelerator: str | None = None,
) -> Engine:
    return ENGINES["flagembedding"](
        EngineRequest(
            version_dir=version_dir,
            kind=kind,
            precision=precision,
            device_index=device_index,
            accelerator=accelerator,
        )
    )
