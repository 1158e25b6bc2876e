"""
Nodes whose engine sleeps instead of computing, so that their capacity does not depend on the processors they share.

    python -m benchmarks.cluster.sleeping REPOSITORY GRPC_PORT METRICS_PORT BATCH_S MAX_QUEUE_TIME_S
"""

import sys
import time
from pathlib import Path

import numpy as np
from trivec_server import lifecycle
from trivec_server.backends.interface import TokenBatch
from trivec_server.logs import configure_logs
from trivec_server.settings import Limits, ServeSettings

from benchmarks.cluster.corpus import CALLS, Corpus, write_corpus
from benchmarks.cluster.nodes import Command
from tests.scripted_engine import Script, expected_dense
from tests.small_repository import WORDS, ids_of, make_repository

BATCH = 4
BATCH_S = 0.06
"""A batch of up to BATCH texts takes so long: about 67 texts a second on a node."""
MAX_QUEUE_TIME_S = 0.5
"""What would wait longer is refused. At 60 % of its capacity a node catches up in 2.5 times as long."""


def make_sleeping_repository(folder: Path) -> tuple[Path, Path]:
    """The repository, and the corpus of calls with one text each."""
    repository = make_repository(folder / "sleeping", config=f"max_batch_size: {BATCH}\n")
    calls = [[word] for word in WORDS[:CALLS]]
    corpus = Corpus(calls, np.stack([[expected_dense(ids_of(text)) for text in texts] for texts in calls])[None])
    corpus.check()
    path = folder / "sleeping-corpus.npz"
    write_corpus(path, corpus)
    return repository, path


def sleep_command(repository: Path, batch_s: float = BATCH_S) -> Command:
    """The command line of such a node."""

    def command(grpc_port: int, metrics_port: int) -> list[str]:
        program = [sys.executable, "-m", "benchmarks.cluster.sleeping"]
        return [*program, str(repository), str(grpc_port), str(metrics_port), str(batch_s), str(MAX_QUEUE_TIME_S)]

    return command


def main() -> None:
    repository, grpc_port, metrics_port, batch_s, max_queue_time_s = sys.argv[1:]

    def sleep(_: TokenBatch) -> None:
        time.sleep(float(batch_s))

    configure_logs("warning", "json")
    settings = ServeSettings(
        model_repositories=(Path(repository),),
        grpc_port=int(grpc_port),
        metrics_port=int(metrics_port),
        limits=Limits(max_queue_time_s=float(max_queue_time_s)),
    )
    lifecycle.serve(settings, engines={"scripted": Script(before_run=sleep).build})


if __name__ == "__main__":
    main()
