"""A peer of the benchmark that does what a test asks of it: fails, dies, prints."""

import os
import sys
from collections.abc import Sequence

from benchmarks.engines.worker import Message, Started, run_worker, started


class ScriptedPeer:
    def __init__(self, options: Message) -> None:
        self._options = options

    def embed(self, texts: list[str]) -> object:
        sys.stdout.write("a library may print\n")
        if self._options.get("fails_at") in texts:
            raise RuntimeError(f"cannot embed {self._options['fails_at']}")
        if self._options.get("dies_at") in texts:
            os._exit(3)
        return texts

    def dense(self, texts: list[str]) -> Sequence[Sequence[float]]:
        return [[float(len(text)), 0.0] for text in texts]


def start(options: Message) -> Started:
    if "fails" in options:
        raise ValueError(options["fails"])
    return started(ScriptedPeer(options), "scripted", ["numpy"])


if __name__ == "__main__":
    run_worker(start)
