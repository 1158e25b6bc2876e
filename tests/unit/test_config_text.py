"""The `config.pbtxt` that a pull writes: read back, it says what the model is."""

from pathlib import Path

import pytest
from trivec_server.repository.config_text import render_config
from trivec_server.repository.manifest import ModelFacts
from trivec_server.repository.model_config import read_model_config
from trivec_server.types import InstanceGroup, InstanceKind, Mode, ScoreWeights

MODEL = ModelFacts(
    architecture="bert",
    pooling="mean",
    precision="float16",
    modes=Mode.HYBRID,
    dense_dimension=384,
    multi_vector_dimension=128,
    vocabulary_size=250002,
    max_tokens=512,
)


def test_a_rendered_config_is_read_back_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(render_config("m", MODEL, query_prefix="query: ", passage_prefix="passage: "), encoding="utf-8")
    settings = read_model_config(path, "m")
    assert settings.warnings == ()
    assert (settings.name, settings.backend) == ("m", "auto")
    assert (settings.dense_dimension, settings.multi_vector_dimension) == (384, 128)
    assert settings.declared_modes == Mode.HYBRID
    assert (settings.pooling, settings.max_tokens, settings.precision) == ("mean", 512, None)
    assert (settings.query_prefix, settings.passage_prefix) == ("query: ", "passage: ")
    assert settings.score_weights == ScoreWeights(1, 1, 1)
    assert settings.instance_groups == (InstanceGroup(kind=InstanceKind.AUTO, count=1),)


@pytest.mark.parametrize("name", ["嵌入 模型", 'a "quoted" name', "back\\slash", "it's {ours}"])
def test_any_model_name_can_be_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(render_config(name, MODEL), encoding="utf-8")
    assert read_model_config(path, name).name == name
