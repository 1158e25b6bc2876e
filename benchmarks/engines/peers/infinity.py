"""infinity-emb: dense vectors only, with its engines `torch` and `optimum` (ONNX Runtime)."""

import asyncio
import os
from collections.abc import Sequence

from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # type: ignore[import-not-found, unused-ignore]

from benchmarks.engines.worker import Message, Started, run_worker, started


class Infinity:
    def __init__(self, options: Message) -> None:
        self._loop = asyncio.new_event_loop()
        # Its engine `optimum` finds the graph of a local directory only by a relative path.
        os.chdir(options["model"])
        self._engine = AsyncEmbeddingEngine.from_args(
            EngineArgs(
                model_name_or_path=".",
                engine=options["engine"],
                device="cpu",
                dtype=options["precision"],
                batch_size=options["batch_size"],
                pooling_method="cls",
                bettertransformer=False,
                model_warmup=False,
            )
        )
        self._loop.run_until_complete(self._engine.astart())

    def embed(self, texts: list[str]) -> object:
        vectors, _ = self._loop.run_until_complete(self._engine.embed(sentences=texts))
        return vectors

    def dense(self, texts: list[str]) -> Sequence[Sequence[float]]:
        vectors, _ = self._loop.run_until_complete(self._engine.embed(sentences=texts))
        return [vector.tolist() for vector in vectors]


def start(options: Message) -> Started:
    packages = ["infinity-emb", "transformers", "torch"]
    if options["engine"] == "optimum":
        packages += ["optimum", "onnxruntime"]
    settings = f"{options['engine']}, {options['precision']}, batch {options['batch_size']}"
    return started(Infinity(options), settings, packages)


if __name__ == "__main__":
    run_worker(start)
