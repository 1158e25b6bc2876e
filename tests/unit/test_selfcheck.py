"""The check before a version serves: a healthy engine passes, and each kind of fault is found and named."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from trivec_server.backends.interface import EngineInfo, EngineOutput, TokenBatch
from trivec_server.errors import LoadError
from trivec_server.repository.selfcheck import check_version
from trivec_server.serving.device import Device
from trivec_server.serving.embed_run import EmbedDevice
from trivec_server.serving.tokenizer import Tokenizer

from tests.scripted_engine import Script, ScriptedEngine
from tests.small_repository import MAX_TOKENS, write_tokenizer

Array = NDArray[np.float32]
Alter = Callable[[EngineOutput, TokenBatch], EngineOutput]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "tokenizer.json"
    write_tokenizer(path)
    return Tokenizer(path)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def device(script: Script) -> Iterator[EmbedDevice]:
    device: EmbedDevice = Device("self-check", lambda: ScriptedEngine(script))
    device.start()
    yield device
    device.close()


def check(script: Script, device: EmbedDevice, tokenizer: Tokenizer, info: EngineInfo | None = None) -> None:
    check_version(device, info or ScriptedEngine(script).info, tokenizer, MAX_TOKENS)


def parts(output: EngineOutput) -> tuple[Array, Array, list[Array]]:
    assert output.dense is not None
    assert output.token_weights is not None
    assert output.multi_vector is not None
    vectors = [rows.astype(np.float32) for rows in output.multi_vector]
    return output.dense.astype(np.float32), output.token_weights.copy(), vectors


def on_part(name: str, change: Callable[[Array], Array]) -> Alter:
    """Changes one part of every output."""

    def alter(output: EngineOutput, _: TokenBatch) -> EngineOutput:
        dense, weights, vectors = parts(output)
        if name == "dense":
            return replace(output, dense=change(dense))
        if name == "sparse":
            return replace(output, token_weights=change(weights))
        return replace(output, multi_vector=[change(rows) for rows in vectors])

    return alter


def when_alone(alter: Alter) -> Alter:
    return lambda output, batch: alter(output, batch) if len(batch.lengths) == 1 else output


def when_together(alter: Alter) -> Alter:
    return lambda output, batch: alter(output, batch) if len(batch.lengths) > 1 else output


def with_first(value: float) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array.flat[0] = value
        return array

    return change


PARTS = ("dense", "sparse", "multi_vector")


def test_a_healthy_engine_passes(script: Script, device: EmbedDevice, tokenizer: Tokenizer) -> None:
    check(script, device, tokenizer)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("when", [when_together, when_alone])
def test_numbers_that_are_not_finite_are_found_together_and_alone(
    script: Script,
    device: EmbedDevice,
    tokenizer: Tokenizer,
    part: str,
    value: float,
    when: Callable[[Alter], Alter],
) -> None:
    script.alter = when(on_part(part, with_first(value)))
    with pytest.raises(LoadError, match=f"self-check failed: {part} has numbers that are not finite"):
        check(script, device, tokenizer)


@pytest.mark.parametrize("part", ["dense", "multi_vector"])
def test_dimensions_other_than_declared_are_found(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer, part: str
) -> None:
    script.alter = on_part(part, lambda array: np.ascontiguousarray(array[:, :-1]))
    with pytest.raises(LoadError, match=rf"{part} has shape .*7.*declared .*8"):
        check(script, device, tokenizer)


def test_a_missing_row_of_multi_vectors_is_found(script: Script, device: EmbedDevice, tokenizer: Tokenizer) -> None:
    script.alter = on_part("multi_vector", lambda rows: rows[:-1])
    with pytest.raises(LoadError, match="multi_vector has shape"):
        check(script, device, tokenizer)


def test_too_few_token_weights_are_found(script: Script, device: EmbedDevice, tokenizer: Tokenizer) -> None:
    script.alter = on_part("sparse", lambda weights: weights[:-1])
    with pytest.raises(LoadError, match="sparse has"):
        check(script, device, tokenizer)


@pytest.mark.parametrize("part", ["dense", "multi_vector"])
def test_a_shape_that_is_wrong_only_alone_is_found(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer, part: str
) -> None:
    script.alter = when_alone(on_part(part, lambda array: np.ascontiguousarray(array[:, :-1])))
    with pytest.raises(LoadError, match=f"{part} has shape"):
        check(script, device, tokenizer)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_output_is_found(script: Script, device: EmbedDevice, tokenizer: Tokenizer, part: str) -> None:
    without: dict[str, Alter] = {
        "dense": lambda output, _: replace(output, dense=None),
        "sparse": lambda output, _: replace(output, token_weights=None),
        "multi_vector": lambda output, _: replace(output, multi_vector=None),
    }
    script.alter = without[part]
    with pytest.raises(LoadError, match=part):
        check(script, device, tokenizer)


@pytest.mark.parametrize("part", ["dense", "multi_vector"])
def test_vectors_that_are_not_of_unit_length_are_found(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer, part: str
) -> None:
    script.alter = on_part(part, lambda array: array * np.float32(1.01))
    with pytest.raises(LoadError, match=f"{part} has vectors of length 1.01"):
        check(script, device, tokenizer)


def test_a_negative_weight_is_found(script: Script, device: EmbedDevice, tokenizer: Tokenizer) -> None:
    script.alter = on_part("sparse", with_first(-0.5))
    with pytest.raises(LoadError, match=r"negative weight, -0\.5"):
        check(script, device, tokenizer)


def test_an_empty_sparse_vector_of_a_text_with_words_is_found(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer
) -> None:
    script.alter = on_part("sparse", np.zeros_like)
    with pytest.raises(LoadError, match="the sparse head is missing or untrained"):
        check(script, device, tokenizer)


@pytest.mark.parametrize("part", PARTS)
def test_results_that_depend_on_the_batch_are_found(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer, part: str
) -> None:
    def tilt(array: Array) -> Array:
        array.flat[-1] += 5e-4
        return array

    script.alter = when_together(on_part(part, tilt))
    with pytest.raises(LoadError, match=f"{part} of a text differs by .* alone and in a batch"):
        check(script, device, tokenizer)


def test_reduced_precision_may_differ_more_between_batches(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer
) -> None:
    script.alter = when_together(on_part("sparse", lambda weights: weights * np.float32(1.02)))
    check(script, device, tokenizer, replace(ScriptedEngine(script).info, precision="float16"))
    with pytest.raises(LoadError, match="differs"):
        check(script, device, tokenizer)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_numbers_of_another_type_than_float32_are_found(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer, part: str, dtype: type[np.floating]
) -> None:
    """Their bytes are sent as they lie in memory: another type would be sent as garbage."""
    script.alter = on_part(part, lambda array: array.astype(dtype))
    with pytest.raises(LoadError, match=f"{part} .*{np.dtype(dtype).name}"):
        check(script, device, tokenizer)


def test_a_tokenizer_with_more_ids_than_the_model_is_found(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer
) -> None:
    info = replace(ScriptedEngine(script).info, vocabulary_size=5)
    with pytest.raises(LoadError, match="the tokenizer gives id 6, the model has 5 ids"):
        check(script, device, tokenizer, info)


def test_an_engine_that_raises_fails_the_check_with_its_error(
    script: Script, device: EmbedDevice, tokenizer: Tokenizer
) -> None:
    def refuse(_: TokenBatch) -> None:
        raise ValueError("no such kernel")

    script.before_run = refuse
    with pytest.raises(ValueError, match="no such kernel"):
        check(script, device, tokenizer)
