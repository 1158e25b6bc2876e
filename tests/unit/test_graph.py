"""The graph of `write_graph`, run in ONNX Runtime, against a plain NumPy forward pass in float64."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from trivec_server.backends.graph.nodes import DATA_FILE
from trivec_server.backends.graph.outliers import find_outliers
from trivec_server.backends.graph.spec import (
    CPU_INT8,
    CUDA_FLOAT16,
    MODEL_FILE,
    TENSORRT_FLOAT16,
    EncoderSpec,
    GraphForm,
    HeadsSpec,
    parse_specs,
)
from trivec_server.backends.graph.write import write_graph, write_graph_beside
from trivec_server.errors import LoadError

from tests.graph_reference import (
    BERT,
    LINEAR_HEADS,
    OUTPUTS,
    TABLE_HEADS,
    VOCABULARY,
    XLM_ROBERTA,
    Array,
    ArraySource,
    Floats,
    Forward,
    Ids,
    pad,
    random_tensors,
    random_texts,
)


def open_session(directory: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(directory / MODEL_FILE, options, providers=["CPUExecutionProvider"])


def build(
    directory: Path, spec: EncoderSpec, heads: HeadsSpec, tensors: Mapping[str, Array]
) -> onnxruntime.InferenceSession:
    write_graph(directory, spec, ArraySource(tensors), heads)
    return open_session(directory)


def run(session: onnxruntime.InferenceSession, texts: list[Ids]) -> list[list[NDArray[np.float32]]]:
    """The three outputs of each text, without their padding."""
    dense, weights, vectors = session.run(list(OUTPUTS), pad(texts))
    return [[dense[row], weights[row, : len(text)], vectors[row, : len(text) - 1]] for row, text in enumerate(texts)]


def assert_same(found: list[list[NDArray[np.float32]]], expected: list[tuple[Floats, Floats, Floats]]) -> None:
    for found_parts, expected_parts in zip(found, expected, strict=True):
        for found_part, expected_part in zip(found_parts, expected_parts, strict=True):
            assert found_part.dtype == np.float32
            np.testing.assert_allclose(found_part, expected_part, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Array]:
    return random_tensors(XLM_ROBERTA)


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Array]) -> Path:
    """A directory with a graph of BGE-M3's kind."""
    directory = tmp_path_factory.mktemp("bge")
    write_graph(directory, XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS)
    return directory


def test_xlm_roberta_with_linear_heads_gives_the_reference_outputs(bge: Path, tensors: dict[str, Array]) -> None:
    texts = random_texts(2, 3, 40, 64, 17)
    forward = Forward(XLM_ROBERTA, LINEAR_HEADS, tensors)
    assert_same(run(open_session(bge), texts), [forward(text) for text in texts])


def test_bert_with_mean_pooling_and_a_table_gives_the_reference_outputs(
    tmp_path: Path, tensors: dict[str, Array]
) -> None:
    texts = random_texts(2, 66, 9)
    forward = Forward(BERT, TABLE_HEADS, tensors)
    assert_same(run(build(tmp_path, BERT, TABLE_HEADS, tensors), texts), [forward(text) for text in texts])


def test_a_literal_pad_token_inside_a_text_takes_no_position(bge: Path, tensors: dict[str, Array]) -> None:
    text = np.asarray([0, 50, 1, 60, 61, 2])
    expected = Forward(XLM_ROBERTA, LINEAR_HEADS, tensors)(text)
    assert_same(run(open_session(bge), [text, *random_texts(9)])[:1], [expected])


def test_scores_computed_in_several_steps_give_the_reference_outputs(tmp_path: Path) -> None:
    """4 heads x 2400 x 2400 scores are more than one step may hold."""
    spec = replace(XLM_ROBERTA, layers=1, max_positions=2402)
    tensors = random_tensors(spec)
    texts = random_texts(2400)
    session = build(tmp_path, spec, LINEAR_HEADS, tensors)
    assert_same(run(session, texts), [Forward(spec, LINEAR_HEADS, tensors)(text) for text in texts])


def test_a_text_gives_the_same_alone_and_among_longer_ones(bge: Path) -> None:
    session = open_session(bge)
    texts = random_texts(5, 64, 2, 33)
    together = run(session, texts)
    for text, parts in zip(texts, together, strict=True):
        for alone, among in zip(run(session, [text])[0], parts, strict=True):
            np.testing.assert_allclose(alone, among, rtol=0, atol=1e-6)


def test_float16_computes_in_float32_with_matrices_rounded_to_half(tmp_path: Path, tensors: dict[str, Array]) -> None:
    spec = replace(XLM_ROBERTA, precision="float16")
    kept = ("token_type_embeddings", "LayerNorm", "bias")
    rounded = {
        name: value if any(word in name for word in kept) else value.astype(np.float16)
        for name, value in tensors.items()
    }
    texts = random_texts(2, 40, 17)
    forward = Forward(spec, LINEAR_HEADS, rounded)
    assert_same(run(build(tmp_path, spec, LINEAR_HEADS, tensors), texts), [forward(text) for text in texts])


def test_float16_takes_half_the_room(tmp_path: Path, bge: Path, tensors: dict[str, Array]) -> None:
    spec = replace(XLM_ROBERTA, precision="float16", vocabulary_size=4096)
    large = random_tensors(spec)
    sizes = []
    for precision in ("float32", "float16"):
        write_graph(tmp_path, replace(spec, precision=precision), ArraySource(large), LINEAR_HEADS)
        sizes.append((tmp_path / DATA_FILE).stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_4bit_word_embeddings_are_half_byte_less_8_times_scale(tmp_path: Path, tensors: dict[str, Array]) -> None:
    spec = replace(BERT, word_embeddings="blocks4", hidden=64)
    tensors = random_tensors(spec)
    random = np.random.default_rng(5)
    halves = random.integers(0, 16, (VOCABULARY, 2, 32), np.uint8)
    scales = random.uniform(0.01, 0.2, (VOCABULARY, 2)).astype(np.float16)
    values = (halves.astype(np.float32) - 8) * scales[..., None].astype(np.float32)
    packed = halves[..., :16] | halves[..., 16:] << 4
    del tensors["embeddings.word_embeddings.weight"]
    tensors["embeddings.word_embeddings.blocks"] = packed.reshape(VOCABULARY, 32)
    tensors["embeddings.word_embeddings.scales"] = scales
    session = build(tmp_path, spec, TABLE_HEADS, tensors)
    forward = Forward(
        spec, TABLE_HEADS, tensors | {"embeddings.word_embeddings.weight": values.reshape(VOCABULARY, 64)}
    )
    texts = random_texts(2, 30)
    assert_same(run(session, texts), [forward(text) for text in texts])


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_head_that_is_not_asked_for_is_not_computed(bge: Path, output: str) -> None:
    session = open_session(bge)
    inputs = pad(random_texts(5, 9))
    whole = dict(zip(OUTPUTS, session.run(list(OUTPUTS), inputs), strict=True))
    flags = {f"with_{name}": np.asarray(name == output) for name in OUTPUTS}
    part = dict(zip(OUTPUTS, session.run(list(OUTPUTS), inputs | flags), strict=True))
    np.testing.assert_array_equal(part[output], whole[output])
    assert [part[name].size for name in OUTPUTS if name != output] == [0, 0]


def test_padding_rows_of_multi_vectors_are_zero(bge: Path) -> None:
    (vectors,) = open_session(bge).run(["multi_vector"], pad(random_texts(4, 9)))
    np.testing.assert_array_equal(vectors[0, 3:], 0)


def test_metadata_says_what_the_model_is(bge: Path) -> None:
    metadata = open_session(bge).get_modelmeta().custom_metadata_map
    specs = {name: metadata.pop(name) for name in ("trivec.encoder", "trivec.heads")}
    assert metadata == {
        "trivec.architecture": "xlm-roberta",
        "trivec.pooling": "cls",
        "trivec.precision": "float32",
        "trivec.vocabulary_size": "101",
        "trivec.dense_dimension": "32",
        "trivec.multi_vector_dimension": "24",
        "trivec.max_tokens": "64",
        "trivec.modes": "dense,sparse,multi_vector",
    }
    assert parse_specs(specs) == (XLM_ROBERTA, LINEAR_HEADS)


def test_a_graph_that_does_not_compute_in_float32_says_so_and_not_how_to_read_its_weights(
    tmp_path: Path, tensors: dict[str, Array]
) -> None:
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS, CPU_INT8)
    metadata = open_session(tmp_path).get_modelmeta().custom_metadata_map
    assert (metadata["trivec.arithmetic"], metadata["trivec.precision"]) == ("int8", "int8")
    assert "trivec.encoder" not in metadata


@pytest.mark.parametrize("form", [CUDA_FLOAT16, TENSORRT_FLOAT16])
def test_float16_layers_give_the_reference_outputs_as_near_as_float16_is(
    tmp_path: Path, tensors: dict[str, Array], form: GraphForm
) -> None:
    """On the CPU, where ONNX Runtime computes some operators in float32 between casts. The texts need padding."""
    texts = random_texts(2, 40, 17)
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS, form)
    forward = Forward(XLM_ROBERTA, LINEAR_HEADS, tensors)
    for found, expected in zip(run(open_session(tmp_path), texts), map(forward, texts), strict=True):
        for found_part, expected_part in zip(found, expected, strict=True):
            assert found_part.dtype == np.float32
            np.testing.assert_allclose(found_part, expected_part, rtol=0, atol=5e-3)


def test_float16_layers_hold_no_float32_matrix_product(tmp_path: Path, tensors: dict[str, Array]) -> None:
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS, CUDA_FLOAT16)
    model = onnx.load(str(tmp_path / MODEL_FILE))
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    products = [node.input[1] for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 12
    assert {types[name] for name in products} == {onnx.TensorProto.FLOAT16}


def test_a_graph_beside_another_reads_the_same_weights(tmp_path: Path, tensors: dict[str, Array]) -> None:
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS, CUDA_FLOAT16)
    data = (tmp_path / DATA_FILE).read_bytes()
    write_graph_beside(tmp_path / "beside.onnx", XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS, TENSORRT_FLOAT16)
    assert (tmp_path / DATA_FILE).read_bytes() == data
    loaded = [
        {tensor.name: tensor.raw_data for tensor in onnx.load(str(tmp_path / name)).graph.initializer}
        for name in (MODEL_FILE, "beside.onnx")
    ]
    names = [name for name in tensors if name in loaded[0]]
    assert names
    assert [loaded[1][name] for name in names] == [loaded[0][name] for name in names]


def test_the_graph_for_tensorrt_has_standard_operators_and_no_control_flow(
    tmp_path: Path, tensors: dict[str, Array]
) -> None:
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS, TENSORRT_FLOAT16)
    nodes = onnx.load(str(tmp_path / MODEL_FILE)).graph.node
    assert {node.domain for node in nodes} == {""}
    assert not {node.op_type for node in nodes} & {"If", "Loop"}


def test_int8_rounds_each_token_by_itself(tmp_path: Path, tensors: dict[str, Array]) -> None:
    """A text's numbers do not change with the texts around it, however large theirs are."""
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS, CPU_INT8)
    session = open_session(tmp_path)
    texts = random_texts(5, 64, 2, 33)
    together = run(session, texts)
    for text, parts in zip(texts, together, strict=True):
        for alone, among in zip(run(session, [text])[0], parts, strict=True):
            np.testing.assert_allclose(alone, among, rtol=0, atol=2e-2)


def test_channels_of_large_numbers_are_found_and_stay_in_float32(tmp_path: Path, tensors: dict[str, Array]) -> None:
    """As trained models have them: one channel of a layer norm is far above the others."""
    prefix = "encoder.layer.1.attention.output.LayerNorm"
    scales = tensors[f"{prefix}.weight"].astype(np.float32)
    scales[5] = 60
    changed = tensors | {f"{prefix}.weight": scales}
    assert find_outliers(XLM_ROBERTA, ArraySource(changed))["encoder.layer.1.intermediate.dense"] == (5,)
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(changed), LINEAR_HEADS, CPU_INT8)
    exact = {tensor.name: tensor for tensor in onnx.load(str(tmp_path / MODEL_FILE)).graph.initializer}
    name = "encoder.layer.1.intermediate.dense.weight"
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(exact[f"{name}_exact"])[0], tensors[name][:, 5])
    texts = random_texts(40, 17)
    forward = Forward(XLM_ROBERTA, LINEAR_HEADS, changed)
    for found, expected in zip(run(open_session(tmp_path), texts), map(forward, texts), strict=True):
        assert found[0] @ expected[0] >= 0.999


@pytest.mark.parametrize("spec", [XLM_ROBERTA, BERT])
def test_the_search_for_outliers_is_the_same_every_time(spec: EncoderSpec, tensors: dict[str, Array]) -> None:
    source = ArraySource(tensors)
    found = find_outliers(spec, source)
    assert found == find_outliers(spec, source)
    assert len(found) == 4 * spec.layers


def test_a_value_that_is_not_finite_cannot_be_rounded_to_int8(tmp_path: Path, tensors: dict[str, Array]) -> None:
    name = "encoder.layer.1.output.dense.weight"
    damaged = tensors[name].copy()
    damaged[3, 4] = np.inf
    source = ArraySource(tensors | {name: damaged})
    with pytest.raises(LoadError, match=rf"tensor {name}: a value is not finite"):
        write_graph(tmp_path, XLM_ROBERTA, source, LINEAR_HEADS, CPU_INT8)


def test_the_model_passes_the_onnx_checker(bge: Path) -> None:
    onnx.checker.check_model(str(bge / MODEL_FILE), full_check=True)


def test_external_weights_start_on_pages_and_matrices_are_turned(bge: Path, tensors: dict[str, Array]) -> None:
    model = onnx.load(str(bge / MODEL_FILE), load_external_data=False)
    external = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    offsets = [int(entry.value) for tensor in external for entry in tensor.external_data if entry.key == "offset"]
    assert offsets
    assert all(offset % 4096 == 0 for offset in offsets)
    stored = {tensor.name: tensor for tensor in onnx.load(str(bge / MODEL_FILE)).graph.initializer}
    name = "encoder.layer.0.intermediate.dense.weight"
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored[name]), tensors[name].T)


def test_the_same_weights_give_the_same_files(tmp_path: Path, bge: Path, tensors: dict[str, Array]) -> None:
    write_graph(tmp_path, XLM_ROBERTA, ArraySource(tensors), LINEAR_HEADS)
    for name in (MODEL_FILE, DATA_FILE):
        assert (tmp_path / name).read_bytes() == (bge / name).read_bytes()


def test_a_missing_tensor_is_named_with_its_shape(tmp_path: Path, tensors: dict[str, Array]) -> None:
    source = ArraySource(tensors)
    del source.tensors["colbert_linear.bias"]
    with pytest.raises(LoadError, match=r"tensor colbert_linear\.bias is missing: expected one of shape \[24\]"):
        write_graph(tmp_path, XLM_ROBERTA, source, LINEAR_HEADS)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path, tensors: dict[str, Array]) -> None:
    source = ArraySource(tensors | {"sparse_linear.weight": np.zeros((1, 31), np.float32)})
    with pytest.raises(LoadError, match=r"tensor sparse_linear\.weight has shape \[1, 31\], expected \[1, 32\]"):
        write_graph(tmp_path, XLM_ROBERTA, source, LINEAR_HEADS)


def test_a_tensor_of_whole_numbers_is_refused(tmp_path: Path, tensors: dict[str, Array]) -> None:
    source = ArraySource(tensors | {"sparse_linear.weight": np.zeros((1, 32), np.int64)})
    with pytest.raises(LoadError, match=r"sparse_linear\.weight holds int64, expected floating-point numbers"):
        write_graph(tmp_path, XLM_ROBERTA, source, LINEAR_HEADS)


@pytest.mark.parametrize(("value", "precision"), [(np.nan, "float32"), (1e6, "float16")])
def test_a_value_that_cannot_be_stored_is_refused(
    tmp_path: Path, tensors: dict[str, Array], value: float, precision: str
) -> None:
    name = "encoder.layer.1.output.dense.weight"
    damaged = tensors[name].copy()
    damaged[3, 4] = value
    spec = replace(XLM_ROBERTA, precision="float16" if precision == "float16" else "float32")
    with pytest.raises(LoadError, match=rf"{name}: a value is not finite or too large for {precision}"):
        write_graph(tmp_path, spec, ArraySource(tensors | {name: damaged}), LINEAR_HEADS)


def test_a_hidden_size_that_does_not_split_into_heads_is_refused() -> None:
    with pytest.raises(LoadError, match="hidden 32 is not a multiple of heads 5"):
        replace(XLM_ROBERTA, heads=5)
