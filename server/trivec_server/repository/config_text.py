"""The `config.pbtxt` that `trivec pull` writes beside a new model: a start for its user to edit."""

import json

from trivec_server.repository.manifest import ModelFacts

_INSTANCE_GROUP = """\
# One engine on the CPU. A higher count runs more engines, each with weights of its own.
instance_group [
  { count: 1, kind: KIND_CPU }
]
"""

_BATCHING = """\
# Texts that wait are computed together. A delay above 0 makes an idle engine wait that long for more of them.
dynamic_batching {
  max_queue_delay_microseconds: 0
}
"""


def render_config(name: str, model: ModelFacts, *, query_prefix: str = "", passage_prefix: str = "") -> str:
    """
    The text of a `config.pbtxt` for a model in a directory called `name`.

    The precision is left out: each version's manifest states its own, so that versions can differ in it.
    """
    parameters = {
        "pooling": (model.pooling, "The vector of a text: `cls` is its first token's, `mean` the average of all."),
        "max_tokens": (str(model.max_tokens), "The most tokens of a text, both special tokens included."),
        "score_weights": ("1,1,1", "Score: factors of dense, sparse and multi-vector in the weighted sums."),
    }
    if query_prefix or passage_prefix:
        parameters["query_prefix"] = (query_prefix, "Put before a text whose input type is QUERY.")
        parameters["passage_prefix"] = (passage_prefix, "Put before a text whose input type is PASSAGE.")
    settings = "".join(
        f"# {comment}\nparameters {{\n  key: {_quoted(key)}\n  value: {{ string_value: {_quoted(value)} }}\n}}\n"
        for key, (value, comment) in parameters.items()
    )
    return "\n".join((_head(name, model), _BATCHING, _INSTANCE_GROUP, settings))


def _head(name: str, model: ModelFacts) -> str:
    return f"""\
# How this model is served. The fields are Triton's ModelConfig; docs/model-repository.md lists those that count.
name: {_quoted(name)}
backend: "onnxruntime"
# The most texts in one batch.
max_batch_size: 64

input [
  {{ name: "text", data_type: TYPE_STRING, dims: [ 1 ] }}
]
output [
  {{ name: "dense", data_type: TYPE_FP32, dims: [ {model.dense_dimension} ] }},
  {{ name: "sparse", data_type: TYPE_FP32, dims: [ -1 ] }},
  {{ name: "multi_vector", data_type: TYPE_FP32, dims: [ -1, {model.multi_vector_dimension} ] }}
]
"""


def _quoted(text: str) -> str:
    # Text format's strings: JSON's escapes are a subset of what it reads, but for \\uXXXX, which is not written here.
    return json.dumps(text, ensure_ascii=False)
