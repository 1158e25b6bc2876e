"""FlagEmbedding's `BGEM3FlagModel`, all three outputs. On a CPU it computes in float32; its bf16 is for GPUs."""

from collections.abc import Sequence

from FlagEmbedding import BGEM3FlagModel

from benchmarks.engines.worker import Message, Started, run_worker, started


class FlagEmbedding:
    def __init__(self, options: Message) -> None:
        self._batch_size: int | None = options["batch_size"]
        self._max_length: int = options["max_tokens"]
        half = options["device"] != "cpu"
        self._model = BGEM3FlagModel(options["model"], use_fp16=half, devices=options["device"])

    def embed(self, texts: list[str]) -> object:
        return self._encode(texts, all_outputs=True)

    def dense(self, texts: list[str]) -> Sequence[Sequence[float]]:
        vectors: Sequence[Sequence[float]] = self._encode(texts, all_outputs=False)["dense_vecs"].tolist()
        return vectors

    def _encode(self, texts: list[str], *, all_outputs: bool) -> Message:
        output: Message = self._model.encode(
            texts,
            batch_size=self._batch_size,
            max_length=self._max_length,
            return_dense=True,
            return_sparse=all_outputs,
            return_colbert_vecs=all_outputs,
        )
        return output


def start(options: Message) -> Started:
    precision = "float32" if options["device"] == "cpu" else "float16"
    batch = "its own batch size" if options["batch_size"] is None else f"batch {options['batch_size']}"
    return started(FlagEmbedding(options), f"{precision}, {batch}", ["FlagEmbedding", "transformers", "torch"])


if __name__ == "__main__":
    run_worker(start)
