"""The graph of `write_graph` in OpenVINO, against a plain NumPy forward pass in float64."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
from trivec_server.backends.graph.spec import MODEL_FILE, EncoderSpec, HeadsSpec
from trivec_server.backends.graph.write import write_graph

from tests.graph_reference import (
    BERT,
    LINEAR_HEADS,
    OUTPUTS,
    TABLE_HEADS,
    XLM_ROBERTA,
    ArraySource,
    Forward,
    pad,
    random_tensors,
    random_texts,
)

LENGTHS = ((2, 3, 40), (17,), (2,), (64, 5))


@pytest.mark.parametrize(("spec", "heads"), [(XLM_ROBERTA, LINEAR_HEADS), (BERT, TABLE_HEADS)])
def test_openvino_gives_the_reference_outputs_for_any_batch_and_length(
    tmp_path: Path, spec: EncoderSpec, heads: HeadsSpec
) -> None:
    tensors = random_tensors(spec)
    write_graph(tmp_path, spec, ArraySource(tensors), heads)
    model = openvino.Core().compile_model(tmp_path / MODEL_FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    forward = Forward(spec, heads, tensors)
    for lengths in LENGTHS:
        texts = random_texts(*lengths)
        outputs = model(pad(texts))
        dense, weights, vectors = (outputs[name] for name in OUTPUTS)
        for row, text in enumerate(texts):
            found = (dense[row], weights[row, : len(text)], vectors[row, : len(text) - 1])
            for found_part, expected_part in zip(found, forward(text), strict=True):
                np.testing.assert_allclose(found_part, expected_part, rtol=0, atol=1e-4)


def test_openvino_gives_the_reference_outputs_where_scores_take_several_steps(tmp_path: Path) -> None:
    """4 heads x 2400 x 2400 scores are more than one step may hold."""
    spec = replace(XLM_ROBERTA, layers=1, max_positions=2402)
    tensors = random_tensors(spec)
    write_graph(tmp_path, spec, ArraySource(tensors), LINEAR_HEADS)
    model = openvino.Core().compile_model(tmp_path / MODEL_FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (text,) = random_texts(2400)
    outputs = model(pad([text]))
    for name, expected in zip(OUTPUTS, Forward(spec, LINEAR_HEADS, tensors)(text), strict=True):
        np.testing.assert_allclose(outputs[name][0], expected, rtol=0, atol=1e-4)
