"""
m3serve: all three outputs. Its batches count calls and it sorts waiting calls by length, so each text is a call of its
own. On a CPU it computes in float32.
"""

import asyncio
from collections.abc import Sequence

from m3serve import Engine  # type: ignore[import-not-found, unused-ignore]

from benchmarks.engines.worker import Message, Started, run_worker, started

_TIMEOUT_S = 900.0


class M3Serve:
    def __init__(self, options: Message) -> None:
        self._loop = asyncio.new_event_loop()
        self._engine = Engine(
            model_name=options["model"],
            device="cpu",
            max_batch_size=options["batch_size"],
            max_length=options["max_tokens"],
            attn_implementation=options["attention"],
        )
        self._loop.run_until_complete(self._engine.start())

    def embed(self, texts: list[str]) -> object:
        return self._run(texts, all_outputs=True)

    def dense(self, texts: list[str]) -> Sequence[Sequence[float]]:
        return [result.dense[0] for result in self._run(texts, all_outputs=False)]

    def _run(self, texts: list[str], *, all_outputs: bool) -> Sequence["_Result"]:
        async def all_texts() -> Sequence[_Result]:
            results: Sequence[_Result] = await asyncio.gather(
                *(
                    self._engine.embed(
                        [text], return_sparse=all_outputs, return_colbert=all_outputs, timeout=_TIMEOUT_S
                    )
                    for text in texts
                )
            )
            return results

        return self._loop.run_until_complete(all_texts())


class _Result:
    """What of m3serve's EmbeddingResult is used here."""

    dense: Sequence[Sequence[float]]


def start(options: Message) -> Started:
    settings = f"float32, {options['attention']} attention, batch {options['batch_size']}"
    return started(M3Serve(options), settings, ["m3serve", "transformers", "torch"])


if __name__ == "__main__":
    run_worker(start)
