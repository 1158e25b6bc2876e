"""Tensors of several requests as one batch, and back."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from trivec_server.errors import ComputeError
from trivec_server.serving.tensors.layout import BatchLayout
from trivec_server.types import TensorSpec

from tests.scripted_tensors import ScriptedModel, TensorScript, identity, row_functions, without_batch_dimension


def layout_of(model: ScriptedModel) -> BatchLayout:
    info = TensorScript(model).info
    return BatchLayout(model.inputs, model.outputs, info, has_batch_dimension=model.has_batch_dimension)


def reshaping(shape: tuple[int, ...], reshape: tuple[int, ...]) -> ScriptedModel:
    """The identity of a model whose own shape differs from the requests'."""
    model = identity(shape=shape)
    return replace(
        model,
        inputs=tuple(replace(spec, reshape=reshape) for spec in model.inputs),
        outputs=tuple(replace(spec, reshape=reshape) for spec in model.outputs),
        symbols={},
    )


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_rows_of_equal_shape_are_put_one_after_the_other() -> None:
    joined = layout_of(identity()).join([{"x": numbers(1, 2)}, {"x": numbers(2, 2) + 10}])
    assert joined["x"].tolist() == [[0, 1], [10, 11], [12, 13]]


def test_a_request_alone_is_not_copied() -> None:
    x = numbers(3, 2)
    assert layout_of(identity()).join([{"x": x}])["x"] is x


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16, np.float64])
def test_padding_keeps_the_type(dtype: type[np.generic]) -> None:
    layout = layout_of(identity(shape=(-1, -1), allow_ragged=True))
    joined = layout.join([{"x": np.ones((1, 2, 1), dtype)}, {"x": np.ones((1, 1, 3), dtype)}])["x"]
    assert joined.dtype == dtype
    assert joined.astype(int).tolist() == [[[1, 0, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]]


def test_padding_of_strings_is_empty_strings() -> None:
    one, two = np.array([[b"a"]], object), np.array([[b"b", b"c"]], object)
    joined = layout_of(identity("BYTES", allow_ragged=True)).join([{"x": one}, {"x": two}])["x"]
    assert joined.tolist() == [[b"a", b""], [b"b", b"c"]]
    assert {type(element) for element in joined.flat} == {bytes}


def test_outputs_are_cut_where_the_model_calls_a_dimension_as_a_padded_one() -> None:
    layout = layout_of(row_functions(allow_ragged=True))
    short, long = {"x": numbers(1, 2)}, {"x": numbers(2, 3)}
    first, second = layout.split([short, long], [1, 2], {"same": numbers(3, 3), "total": numbers(3, 1)})
    assert {name: array.shape for name, array in first.items()} == {"same": (1, 2), "total": (1, 1)}
    assert {name: array.shape for name, array in second.items()} == {"same": (2, 3), "total": (2, 1)}
    assert second["total"].tolist() == [[1], [2]]


def test_a_dimension_without_a_name_comes_as_the_model_computed_it() -> None:
    model = replace(row_functions(allow_ragged=True), symbols={"x": ("", ""), "same": ("", "")})
    outputs = layout_of(model).split([{"x": numbers(1, 2)}, {"x": numbers(1, 3)}], [1, 1], {"same": numbers(2, 3)})
    assert [each["same"].shape for each in outputs] == [(1, 3), (1, 3)]


def test_a_dimension_of_the_same_name_but_another_size_is_not_cut() -> None:
    """A model may say `n` and give something else: what it gives is not touched."""
    layout = layout_of(row_functions(allow_ragged=True))
    outputs = layout.split([{"x": numbers(1, 2)}, {"x": numbers(1, 3)}], [1, 1], {"same": numbers(2, 5)})
    assert [each["same"].shape for each in outputs] == [(1, 5), (1, 5)]


def test_names_of_several_dimensions_are_cut_each_to_its_own_size() -> None:
    model = identity(shape=(-1, -1), allow_ragged=True)
    turned = replace(model, symbols={**model.symbols, "y": ("batch", "d1", "d0")})
    requests = [{"x": numbers(1, 2, 5)}, {"x": numbers(1, 4, 3)}]
    outputs = layout_of(turned).split(requests, [1, 1], {"y": numbers(2, 5, 4)})
    assert [each["y"].shape for each in outputs] == [(1, 5, 2), (1, 3, 4)]


@pytest.mark.parametrize(
    ("shape", "reshape", "given_shape", "model_shape"),
    [
        ((1,), (), (3, 1), (3,)),
        ((4,), (2, 2), (3, 4), (3, 2, 2)),
        ((-1, 4), (-1, 2, 2), (3, 7, 4), (3, 7, 2, 2)),
        ((2, 3, -1, 4), (6, -1, 2, 2), (1, 2, 3, 9, 4), (1, 6, 9, 2, 2)),
        ((-1, 4, -1), (-1, 2, 2, -1), (2, 5, 4, 6), (2, 5, 2, 2, 6)),
        ((-1, 4), (-1, 2, 2), (3, 0, 4), (3, 0, 2, 2)),
    ],
)
def test_reshape_keeps_what_varies_in_its_order(
    shape: tuple[int, ...], reshape: tuple[int, ...], given_shape: tuple[int, ...], model_shape: tuple[int, ...]
) -> None:
    x = numbers(*given_shape)
    batched, plain = reshaping(shape, reshape), without_batch(reshaping(shape, reshape))
    for model, own in ((batched, x), (plain, x[0])):
        layout = layout_of(model)
        inside = layout.join([{"x": own}])["x"]
        assert inside.shape == (model_shape if model is batched else model_shape[1:])
        (restored,) = layout.split([{"x": own}], [len(x) if model is batched else 1], {"y": inside})
        assert restored["y"].shape == own.shape
        assert restored["y"].tolist() == own.tolist()


def without_batch(model: ScriptedModel) -> ScriptedModel:
    return replace(model, has_batch_dimension=False)


def test_requests_of_a_reshaped_input_are_told_apart() -> None:
    layout = layout_of(reshaping((1,), ()))
    requests = [{"x": numbers(2, 1)}, {"x": numbers(1, 1) + 9}]
    joined = layout.join(requests)["x"]
    assert joined.tolist() == [0, 1, 9]
    assert [each["y"].tolist() for each in layout.split(requests, [2, 1], {"y": joined})] == [[[0], [1]], [[9]]]


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 3), (3,)])
def test_an_output_that_does_not_have_the_models_shape_is_named(shape: tuple[int, ...]) -> None:
    layout = layout_of(reshaping((4,), (2, 2)))
    with pytest.raises(ComputeError, match=r"output 'y' has shape \[3.*config.pbtxt says .* \[-1, 2, 2\]"):
        layout.split([{"x": numbers(3, 4)}], [3], {"y": numbers(*shape)})


@pytest.mark.parametrize("output", [numbers(2, 1), numbers(4, 1), np.float32(1)])
def test_an_output_of_another_number_of_rows_is_named(output: Any) -> None:
    layout = layout_of(row_functions())
    requests = [{"x": numbers(1, 2)}, {"x": numbers(2, 2)}]
    with pytest.raises(ComputeError, match=r"output 'total' has shape .* for a batch of 3 rows"):
        layout.split(requests, [1, 2], {"total": output})


def test_without_a_batch_dimension_an_output_may_have_any_shape() -> None:
    layout = layout_of(without_batch_dimension(identity(shape=())))
    assert layout.split([{"x": numbers(5)}], [1], {"y": numbers(2, 3)})[0]["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("datatype", "item_bytes"), [("FP32", 4), ("INT8", 1), ("BOOL", 1), ("UINT64", 8), ("BF16", 2), ("BYTES", 64)]
)
def test_outputs_are_estimated_by_what_the_request_says_of_their_sizes(datatype: str, item_bytes: int) -> None:
    x = np.zeros((3, 5, 7), np.uint8)
    assert layout_of(identity(datatype, (-1, 7))).output_bytes({"x": x}, 3, ["y"]) == 3 * 5 * 7 * item_bytes
    plain = without_batch_dimension(replace(identity(datatype, (7,)), symbols={"x": ("n", ""), "y": ("n", "")}))
    assert layout_of(plain).output_bytes({"x": x[0]}, 1, ["y"]) == 5 * 7 * item_bytes


def test_only_the_outputs_asked_for_are_estimated_and_unknown_sizes_count_as_one() -> None:
    layout = layout_of(replace(row_functions(), symbols={}))
    assert layout.output_bytes({"x": numbers(3, 9)}, 3, ["total", "batch_rows"]) == 3 * (4 + 8)
    assert layout.output_bytes({"x": numbers(3, 9)}, 3, ["same"]) == 3 * 4


def test_an_output_is_estimated_by_the_models_own_shape() -> None:
    spec = TensorSpec(name="y", datatype="FP32", shape=(6,), reshape=(2, 3))
    model = replace(identity(shape=(6,)), outputs=(spec,), symbols={})
    assert layout_of(model).output_bytes({"x": numbers(5, 6)}, 5, ["y"]) == 5 * 6 * 4


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6))
def test_what_was_joined_comes_apart_as_it_was(shapes: list[tuple[int, int, int]]) -> None:
    layout = layout_of(identity(shape=(-1, -1), allow_ragged=True))
    requests = [{"x": numbers(*shape) + 1000 * number} for number, shape in enumerate(shapes)]
    joined = layout.join(requests)["x"]
    outputs = layout.split(requests, [shape[0] for shape in shapes], {"y": joined})
    for request, output in zip(requests, outputs, strict=True):
        assert output["y"].shape == request["x"].shape
        assert output["y"].tolist() == request["x"].tolist()
