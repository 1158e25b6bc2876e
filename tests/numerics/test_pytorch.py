"""The PyTorch engine on the CPU against ONNX Runtime and a plain NumPy forward pass in float64."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec
from trivec_server.backends.graph.write import write_graph
from trivec_server.backends.interface import Engine, EngineOutput, EngineRequest, TokenBatch, Vectors
from trivec_server.errors import LoadError
from trivec_server.repository.engines import onnxruntime_engine, pytorch_engine
from trivec_server.types import InstanceKind, Mode

from tests.graph_reference import (
    BERT,
    LINEAR_HEADS,
    TABLE_HEADS,
    XLM_ROBERTA,
    ArraySource,
    Floats,
    Forward,
    Ids,
    random_tensors,
    random_texts,
)

pytestmark = pytest.mark.torch

KINDS = {
    "xlm-roberta, cls, linear": (XLM_ROBERTA, LINEAR_HEADS),
    "xlm-roberta, mean, table": (replace(XLM_ROBERTA, pooling="mean"), TABLE_HEADS),
    "bert, mean, linear": (BERT, LINEAR_HEADS),
    "bert, cls, table": (replace(BERT, pooling="cls"), TABLE_HEADS),
    "xlm-roberta, float16 on disk": (replace(XLM_ROBERTA, precision="float16"), LINEAR_HEADS),
}


def build(directory: Path, precision: str | None = "float32") -> Engine:
    return pytorch_engine(EngineRequest(version_dir=directory, kind=InstanceKind.CPU, precision=precision))


def batch_of(texts: list[Ids]) -> TokenBatch:
    return TokenBatch(np.concatenate(texts), np.array([len(text) for text in texts], np.int64))


def parts_of(output: EngineOutput, batch: TokenBatch) -> list[tuple[Vectors, ...]]:
    """The three parts of each text."""
    assert output.dense is not None
    assert output.token_weights is not None
    assert output.multi_vector is not None
    weights = np.split(output.token_weights, np.cumsum(batch.lengths)[:-1])
    return list(zip(output.dense, weights, output.multi_vector, strict=True))


def assert_close(found: list[tuple[Vectors, ...]], expected: Sequence[tuple[Vectors | Floats, ...]]) -> None:
    for found_parts, expected_parts in zip(found, expected, strict=True):
        for found_part, expected_part in zip(found_parts, expected_parts, strict=True):
            assert found_part.dtype == np.float32
            np.testing.assert_allclose(found_part, expected_part, rtol=0, atol=1e-5)


def texts_with_pads() -> list[Ids]:
    """Texts of many lengths, some of equal length, one with literal pads inside."""
    texts = random_texts(2, 64, 17, 3, 17, 40, 2, 17, 5)
    texts[2][4:6] = 1
    return texts


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[EncoderSpec, HeadsSpec]:
    chosen: tuple[EncoderSpec, HeadsSpec] = request.param
    return chosen


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A version of BGE-M3's kind."""
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(random_tensors(XLM_ROBERTA)), LINEAR_HEADS)
    return tmp_path


@pytest.fixture(scope="module")
def mini(mini_repository: Path) -> Path:
    return mini_repository / "m3-mini" / "1"


def mini_batch(engine: Engine) -> TokenBatch:
    random = np.random.default_rng(4)
    lengths = np.array([2, 3, 64, 17, 17, 120, 5, 33], np.int64)
    return TokenBatch(random.integers(0, engine.info.vocabulary_size, lengths.sum()), lengths)


def test_float32_gives_the_reference_outputs_in_the_order_of_the_batch(
    kind: tuple[EncoderSpec, HeadsSpec], tmp_path: Path
) -> None:
    spec, heads = kind
    tensors = random_tensors(spec)
    write_graph(tmp_path, spec, ArraySource(tensors), heads)
    if spec.precision == "float16":
        tensors = {name: each.astype(np.float16) if is_matrix(name, each) else each for name, each in tensors.items()}
    texts = texts_with_pads()
    batch = batch_of(texts)

    output = build(tmp_path).run(batch, Mode.HYBRID)

    assert_close(parts_of(output, batch), [Forward(spec, heads, tensors)(text) for text in texts])
    assert output.non_finite_rows is not None
    assert output.non_finite_rows.tolist() == []


def test_float32_agrees_with_onnxruntime_on_m3_mini(mini: Path) -> None:
    engine, other = build(mini), onnxruntime_engine(EngineRequest(version_dir=mini))
    batch = mini_batch(engine)

    found = parts_of(engine.run(batch, Mode.HYBRID), batch)

    expected = parts_of(other.run(batch, Mode.HYBRID), batch)
    assert_close(found, expected)


def test_a_text_has_the_same_embeddings_alone_and_in_a_batch(directory: Path) -> None:
    engine, texts = build(directory), texts_with_pads()
    together = parts_of(engine.run(batch_of(texts), Mode.HYBRID), batch_of(texts))

    alone = [parts_of(engine.run(batch_of([text]), Mode.HYBRID), batch_of([text]))[0] for text in texts]

    for first, second in zip(together, alone, strict=True):
        for one, other in zip(first, second, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_bfloat16_keeps_the_cosine_of_every_vector(mini: Path) -> None:
    exact, fast = build(mini), build(mini, "bfloat16")
    batch = mini_batch(exact)

    expected, found = (engine.run(batch, Mode.HYBRID) for engine in (exact, fast))

    assert fast.info.precision == "bfloat16"
    assert cosines(found.dense, expected.dense).min() >= 0.9995
    for one, other in zip(found.multi_vector or (), expected.multi_vector or (), strict=True):
        assert cosines(one, other).min() >= 0.999


def is_matrix(name: str, tensor: NDArray[np.generic]) -> bool:
    """Whether it is stored in the model's precision; of token types the one row in use is stored, as a vector."""
    return tensor.ndim > 1 and "token_type" not in name


def cosines(one: NDArray[np.generic] | None, other: NDArray[np.generic] | None) -> NDArray[np.float64]:
    assert one is not None
    assert other is not None
    return np.asarray((one.astype(np.float64) * other.astype(np.float64)).sum(axis=1))


@pytest.mark.parametrize("mode", [Mode.DENSE, Mode.SPARSE, Mode.MULTI_VECTOR])
def test_only_the_part_that_is_asked_for_is_there_and_equals_that_of_all(directory: Path, mode: Mode) -> None:
    engine, batch = build(directory), batch_of(texts_with_pads())
    every = engine.run(batch, Mode.HYBRID)

    output = engine.run(batch, mode)

    names = {Mode.DENSE: "dense", Mode.SPARSE: "token_weights", Mode.MULTI_VECTOR: "multi_vector"}
    for each, name in names.items():
        part = getattr(output, name)
        if each is not mode:
            assert part is None
            continue
        for one, other in zip(part, getattr(every, name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_safetensors_beside_no_graph_are_served_as_well(directory: Path, tmp_path: Path) -> None:
    from trivec_server.backends.weights.stored_model import (  # noqa: PLC0415 - used here alone
        open_stored_model,
        write_stored_model,
    )

    other = tmp_path / "other"
    other.mkdir()
    write_stored_model(other, open_stored_model(directory), "float32")
    batch = batch_of(texts_with_pads())

    found, expected = (build(each).run(batch, Mode.DENSE).dense for each in (other, directory))

    np.testing.assert_array_equal(found, expected)


MEMORY_OF_A_LONG_TEXT = """
import resource, sys
from pathlib import Path
import numpy as np
from trivec_server.backends.interface import EngineRequest, TokenBatch, Vectors
from trivec_server.repository.engines import pytorch_engine
from trivec_server.types import InstanceKind, Mode

engine = pytorch_engine(EngineRequest(version_dir=Path(sys.argv[1]), kind=InstanceKind.CPU, precision=sys.argv[2]))
text = lambda tokens: TokenBatch(np.arange(tokens) % 90 + 4, np.array([tokens]))
engine.run(text(256), Mode.HYBRID)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
output = engine.run(text(8192), Mode.HYBRID)
assert output.multi_vector[0].shape == (8191, 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_text_of_8192_tokens_needs_no_memory_for_its_scores(tmp_path: Path, precision: str) -> None:
    spec = replace(XLM_ROBERTA, max_positions=8194)
    write_graph(tmp_path, spec, ArraySource(random_tensors(spec)), LINEAR_HEADS)

    done = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_A_LONG_TEXT, str(tmp_path), precision],
        capture_output=True,
        text=True,
        check=True,
    )

    # The scores of four heads would be 1 GiB in float32.
    assert int(done.stdout) < 100_000  # KiB


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"kind": InstanceKind.GPU}, "KIND_GPU, but no NVIDIA GPU is visible"),
        ({"device_index": 0}, "KIND_GPU, but no NVIDIA GPU is visible"),
        ({"kind": InstanceKind.CPU, "precision": "float16"}, "on a CPU has float32, bfloat16"),
        ({"kind": InstanceKind.CPU, "precision": "float8"}, "on a CPU has float32, bfloat16"),
        ({"accelerator": "tensorrt"}, "`tensorrt`"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_with_the_reason(
    directory: Path, wanted: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivec_server.backends.pytorch.build.nvidia_gpu_count", lambda: 0)
    request = replace(EngineRequest(version_dir=directory), **wanted)  # type: ignore[arg-type]

    with pytest.raises(LoadError, match=reason):
        pytorch_engine(request)


def test_kind_auto_without_a_gpu_runs_on_the_cpu_and_says_so(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivec_server.backends.pytorch.build.nvidia_gpu_count", lambda: 0)

    info = pytorch_engine(EngineRequest(version_dir=directory, kind=InstanceKind.AUTO)).info

    assert info.device == "cpu"
    assert any("on the CPU" in note for note in info.notes)


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is there, until it is used."""
    torch = import_module("torch")

    def fail(_: object) -> None:
        raise RuntimeError("CUDA driver initialization failed\nadvice")

    monkeypatch.setattr("trivec_server.backends.pytorch.build.nvidia_gpu_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", fail)


@pytest.mark.usefixtures("broken_gpu")
def test_kind_auto_with_a_gpu_that_fails_runs_on_the_cpu_and_says_why(directory: Path) -> None:
    info = pytorch_engine(EngineRequest(version_dir=directory, kind=InstanceKind.AUTO)).info

    assert info.device == "cpu"
    reason = "on the CPU: GPU 0 cannot be used: RuntimeError: CUDA driver initialization failed"
    assert reason in info.notes


@pytest.mark.usefixtures("broken_gpu")
@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"kind": InstanceKind.GPU}, "GPU 0 cannot be used: RuntimeError: CUDA driver initialization failed$"),
        ({"device_index": 0}, "GPU 0 cannot be used: RuntimeError: CUDA driver initialization failed$"),
        ({"precision": "float16"}, "on a CPU has float32, bfloat16"),
    ],
)
def test_a_gpu_that_fails_is_an_error_where_the_cpu_cannot_stand_in(
    directory: Path, wanted: dict[str, object], reason: str
) -> None:
    request = replace(EngineRequest(version_dir=directory), **wanted)  # type: ignore[arg-type]

    with pytest.raises(LoadError, match=reason):
        pytorch_engine(request)


def test_a_configured_token_budget_is_kept(directory: Path) -> None:
    request = EngineRequest(version_dir=directory, kind=InstanceKind.CPU, token_budget=777)

    assert pytorch_engine(request).info.token_budget == 777


def test_a_truncated_weight_file_is_refused_by_the_name_of_a_tensor(directory: Path) -> None:
    data = directory / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4096])

    with pytest.raises(LoadError, match=r"tensor .*\.weight"):
        build(directory)


def test_ids_beyond_the_vocabulary_are_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="token ids 0 to 5000"):
        build(directory).run(batch_of([np.array([0, 5000, 2])]), Mode.DENSE)
