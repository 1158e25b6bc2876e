"""
m3-mini as a model of Triton's python backend: texts in, embeddings out under the names that Trivec gives them,
`model.onnx` through ONNX Runtime, the same tokenizer. Copied into Triton's model repository as `model.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found, unused-ignore]
from tokenizers import Tokenizer

_SPECIAL_TOKENS = 4
_PAD_TOKEN = 1
_MADE_OF = {
    "dense": "dense",
    "sparse_indptr": "token_weights",
    "sparse_indices": "token_weights",
    "sparse_values": "token_weights",
    "multi_vector_offsets": "multi_vector",
    "multi_vector": "multi_vector",
}
"""The graph's output that each of the model's is made of."""


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        version = Path(parameters["version_dir"]["string_value"])
        self._tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(int(parameters["max_tokens"]["string_value"]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(version / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        # What no request wants is not computed.
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One forward pass over the texts of all requests that the dynamic batcher gathered."""
        texts = [_texts(request) for request in requests]
        wanted = [request.requested_output_names() for request in requests]
        ids, mask = self._tokenize([text for part in texts for text in part])
        fetches = sorted({_MADE_OF[name] for names in wanted for name in names})
        arrays = self._session.run(fetches, {"input_ids": ids, "attention_mask": mask}, self._run_options)
        responses, start = [], 0
        for part, names in zip(texts, wanted, strict=True):
            rows = slice(start, start + len(part))
            start += len(part)
            own = {fetch: array[rows] for fetch, array in zip(fetches, arrays, strict=True)}
            responses.append(_response(names, own, ids[rows], mask[rows]))
        return responses

    def _tokenize(self, texts: list[str]) -> tuple[Any, Any]:
        """Ids and mask, padded to the longest."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.full((len(encodings), longest), _PAD_TOKEN, np.int64)
        mask = np.zeros((len(encodings), longest), np.int64)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        return ids, mask


def _texts(request: Any) -> list[str]:
    array = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
    return [text.decode() for text in array.reshape(-1)]


def _response(names: Sequence[str], computed: Mapping[str, Any], ids: Any, mask: Any) -> Any:
    wanted = {_MADE_OF[name] for name in names}
    tensors: dict[str, Any] = {}
    if "dense" in wanted:
        tensors["dense"] = computed["dense"]
    if "token_weights" in wanted:
        tensors |= _sparse(computed["token_weights"], ids)
    if "multi_vector" in wanted:
        tensors |= _multi_vector(computed["multi_vector"], mask)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, np.ascontiguousarray(tensors[name])) for name in names])


def _sparse(weights: Any, ids: Any) -> dict[str, Any]:
    """Rows one behind the other: ids without special ones, each once, and their largest weights."""
    indices, values, ends = [], [], [0]
    for row in range(len(ids)):
        order = np.lexsort((-weights[row], ids[row]))
        tokens, first = np.unique(ids[row][order], return_index=True)
        largest = weights[row][order][first]
        kept = (tokens >= _SPECIAL_TOKENS) & (largest > 0)
        indices.append(tokens[kept])
        values.append(largest[kept])
        ends.append(ends[-1] + int(kept.sum()))
    return {
        "sparse_indptr": np.array(ends, np.int64),
        "sparse_indices": np.concatenate(indices),
        "sparse_values": np.concatenate(values),
    }


def _multi_vector(vectors: Any, mask: Any) -> dict[str, Any]:
    """All tokens of a text but the first."""
    lengths = mask.sum(axis=1) - 1
    return {
        "multi_vector_offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "multi_vector": np.concatenate([row[:length] for row, length in zip(vectors, lengths, strict=True)]),
    }
