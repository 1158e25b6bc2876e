"""
The model of Triton's python backend: texts in, the three embeddings out, `model.onnx` through ONNX Runtime, the same
tokenizer. Copied into Triton's model repository as `model.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found, unused-ignore]
from tokenizers import Tokenizer

_OUTPUTS = ("dense", "token_weights", "multi_vector")
_SPECIAL_TOKENS = 4
_PAD_TOKEN = 1


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        version = Path(parameters["version_dir"]["string_value"])
        self._tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
        self._tokenizer.enable_truncation(int(parameters["max_tokens"]["string_value"]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(version / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One forward pass over the texts of all requests that the dynamic batcher gathered."""
        texts = [_texts(request) for request in requests]
        encodings = self._tokenizer.encode_batch([text for part in texts for text in part])
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.full((len(encodings), longest), _PAD_TOKEN, np.int64)
        mask = np.zeros((len(encodings), longest), np.int64)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        dense, weights, vectors = self._session.run(_OUTPUTS, {"input_ids": ids, "attention_mask": mask})
        responses, start = [], 0
        for part in texts:
            rows = slice(start, start + len(part))
            responses.append(_response(ids[rows], mask[rows], dense[rows], weights[rows], vectors[rows]))
            start += len(part)
        return responses


def _texts(request: Any) -> list[str]:
    array = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
    return [text.decode() for text in array.reshape(-1)]


def _response(ids: Any, mask: Any, dense: Any, weights: Any, vectors: Any) -> Any:
    """The sparse vectors as [rows, tokens]: ids without special ones, each once, and their largest weights."""
    sparse_ids = np.zeros(ids.shape, np.int64)
    sparse_weights = np.zeros(ids.shape, np.float32)
    for row in range(len(ids)):
        best: dict[int, float] = {}
        for token, weight in zip(ids[row].tolist(), weights[row].tolist(), strict=True):
            if token >= _SPECIAL_TOKENS and weight > best.get(token, 0.0):
                best[token] = weight
        sparse_ids[row, : len(best)] = list(best)
        sparse_weights[row, : len(best)] = list(best.values())
    length = int(mask.sum(axis=1).max())
    tensors = {
        "dense": dense,
        "sparse_ids": sparse_ids[:, :length],
        "sparse_weights": sparse_weights[:, :length],
        "multi_vector": vectors[:, : length - 1],
    }
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in tensors.items()]
    )
