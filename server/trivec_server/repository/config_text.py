"""The `config.pbtxt` that `trivec pull` writes beside a new model: a start for its user to edit."""

import json
from collections.abc import Iterator

from trivec_server.repository.manifest import ModelFacts

_BATCHING = """\
# Texts that wait are computed together. A delay above 0 makes an idle engine wait that long for more of them.
dynamic_batching {
  max_queue_delay_microseconds: 0
}
"""

_INSTANCE_GROUP = """\
# One engine: on the first GPU if there is one that the engine can use, else on the CPU. KIND_GPU: on every GPU.
instance_group [
  { count: 1, kind: KIND_AUTO }
]
"""
_DEMONSTRATION_INSTANCE_GROUP = """\
# One engine on the CPU. A higher count runs more engines, each with weights of its own.
instance_group [
  { count: 1, kind: KIND_CPU }
]
"""

_POOLING_COMMENTS = {"cls": "is that of its first token", "mean": "is the average of all its tokens"}


def render_config(name: str, model: ModelFacts, *, query_prefix: str = "", passage_prefix: str = "") -> str:
    """
    The text of a `config.pbtxt` for a model in a directory called `name`.

    The precision is left out: each version's manifest states its own, so that versions can differ in it.
    """
    settings = "".join(_render_parameters(model, query_prefix, passage_prefix))
    group = _DEMONSTRATION_INSTANCE_GROUP if model.demonstration else _INSTANCE_GROUP
    return "\n".join((_render_head(name, model), _BATCHING, group, settings))


def _backend(model: ModelFacts) -> str:
    if model.demonstration:
        return 'backend: "onnxruntime"'
    return (
        '# The engine that is fastest on the machine, of those installed; docs/engines.md lists them.\nbackend: "auto"'
    )


def _render_head(name: str, model: ModelFacts) -> str:
    subject = f"{name}, the demonstration model," if model.demonstration else "this model"
    card = " README.md beside this file says what\n# the model is." if model.demonstration else ""
    return f"""\
# How {subject} is served. The fields are Triton's ModelConfig;
# docs/model-repository.md lists those that count.{card}
name: {_quoted(name)}
{_backend(model)}
# The most texts in one batch. A batch also holds a budget of tokens, which is what counts for all but short texts.
max_batch_size: {64 if model.demonstration else 1024}

input [
  {{ name: "text", data_type: TYPE_STRING, dims: [ 1 ] }}
]
output [
  {{ name: "dense", data_type: TYPE_FP32, dims: [ {model.dense_dimension} ] }},
  {{ name: "sparse", data_type: TYPE_FP32, dims: [ -1 ] }},
  {{ name: "multi_vector", data_type: TYPE_FP32, dims: [ -1, {model.multi_vector_dimension} ] }}
]
"""


def _render_parameters(model: ModelFacts, query_prefix: str, passage_prefix: str) -> Iterator[str]:
    pooling = f"The vector of a text: `{model.pooling}` {_POOLING_COMMENTS[model.pooling]}."
    yield _render_parameter(
        "max_tokens", str(model.max_tokens), "The most tokens of a text, both special ones included."
    )
    yield _render_parameter("pooling", model.pooling, pooling)
    if query_prefix or passage_prefix:
        yield _render_parameter("query_prefix", query_prefix, "Put before a text whose input type is QUERY.")
        yield _render_parameter("passage_prefix", passage_prefix, "Put before a text whose input type is PASSAGE.")
    yield _render_parameter("score_weights", "1,1,1", "Score: factors of dense, sparse and multi-vector.")


def _render_parameter(key: str, value: str, comment: str) -> str:
    return f"# {comment}\nparameters {{\n  key: {_quoted(key)}\n  value: {{ string_value: {_quoted(value)} }}\n}}\n"


def _quoted(text: str) -> str:
    # Of JSON's escapes text format lacks only `\/`, which is not written here.
    return json.dumps(text, ensure_ascii=False)
