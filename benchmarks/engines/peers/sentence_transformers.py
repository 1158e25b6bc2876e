"""sentence-transformers: dense vectors only, with PyTorch or with its OpenVINO backend."""

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]

from benchmarks.engines.worker import Message, Started, run_worker, started

_OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class SentenceTransformers:
    def __init__(self, options: Message) -> None:
        self._batch_size: int = options["batch_size"]
        self._model = SentenceTransformer(
            options["model"], device=options["device"], backend=options["backend"], model_kwargs=_model_options(options)
        )
        self._model.max_seq_length = options["max_tokens"]

    def embed(self, texts: list[str]) -> object:
        return self._model.encode(texts, batch_size=self._batch_size, normalize_embeddings=True)

    def dense(self, texts: list[str]) -> Sequence[Sequence[float]]:
        vectors: Sequence[Sequence[float]] = self._model.encode(texts, normalize_embeddings=True).tolist()
        return vectors


def _model_options(options: Message) -> Message:
    if options["backend"] == "openvino":
        return {"ov_config": {"INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[options["precision"]]}}
    return {"dtype": getattr(torch, options["precision"])}


def start(options: Message) -> Started:
    packages = ["sentence-transformers", "transformers", "torch"]
    if options["backend"] == "openvino":
        packages += ["optimum-intel", "openvino"]
    settings = f"{options['backend']}, {options['precision']}, batch {options['batch_size']}"
    return started(SentenceTransformers(options), settings, packages)


if __name__ == "__main__":
    run_worker(start)
