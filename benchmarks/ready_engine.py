"""
An engine that returns ready arrays: what is left is the server itself.

`python -m benchmarks.ready_engine REPOSITORY` makes a model for it in REPOSITORY and serves it.
"""

import sys
from pathlib import Path

import numpy as np
from trivec_server import lifecycle
from trivec_server.backends.interface import Engine, EngineInfo, EngineOutput, EngineRequest, TokenBatch
from trivec_server.logs import configure_logs
from trivec_server.repository.manifest import ModelFacts, Source, write_manifest
from trivec_server.repository.mini import build_tokenizer
from trivec_server.repository.mini_file import MiniFile, find_mini_file
from trivec_server.settings import Limits, ServeSettings
from trivec_server.types import Mode

DIMENSION = 1024
VOCABULARY_SIZE = 250_002
MAX_TOKENS = 8192
MAX_ROWS = 1024

_CONFIG = f"""\
name: "ready"
backend: "ready"
max_batch_size: {MAX_ROWS}
"""


class ReadyEngine:
    """
    Rows of arrays made once. A row depends on its text's length alone, as the self-check wants: alone or in a batch,
    the same text has the same result.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        vectors = random.standard_normal((MAX_TOKENS, DIMENSION), np.float32)
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self._dense = np.repeat(self._vectors[:1], MAX_ROWS, axis=0)
        self._weights = np.full(MAX_TOKENS * 64, 0.25, np.float32)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="ready",
            device="cpu",
            precision="float32",
            modes=Mode.HYBRID,
            dense_dimension=DIMENSION,
            multi_vector_dimension=DIMENSION,
            vocabulary_size=VOCABULARY_SIZE,
            pooling="cls",
            pads=False,
            token_budget=MAX_TOKENS * 8,
        )

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        return EngineOutput(
            dense=self._dense[: len(batch.lengths)] if Mode.DENSE in modes else None,
            token_weights=self._weights[: len(batch.token_ids)] if Mode.SPARSE in modes else None,
            multi_vector=[self._vectors[: length - 1] for length in batch.lengths.tolist()]
            if Mode.MULTI_VECTOR in modes
            else None,
        )

    def close(self) -> None:
        pass


def build_ready(request: EngineRequest) -> Engine:
    return ReadyEngine()


def make_repository(root: Path) -> None:
    """A model with BGE-M3's own vocabulary and no weights."""
    version = root / "ready" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(_CONFIG)
    file = MiniFile(find_mini_file())
    build_tokenizer(file.pieces, file.scores).save(str(version / "tokenizer.json"))
    facts = ModelFacts(
        architecture="xlm-roberta",
        pooling="cls",
        precision="float32",
        modes=Mode.HYBRID,
        dense_dimension=DIMENSION,
        multi_vector_dimension=DIMENSION,
        vocabulary_size=VOCABULARY_SIZE,
        max_tokens=MAX_TOKENS,
    )
    write_manifest(version, facts, Source(kind="directory", name="benchmarks"), ["tokenizer.json"])


def main() -> None:
    repository = Path(sys.argv[1])
    make_repository(repository)
    configure_logs("warning", "text")
    settings = ServeSettings(
        model_repositories=(repository,), grpc_port=0, metrics_port=None, drain_pause_s=0, limits=Limits()
    )
    lifecycle.serve(
        settings,
        engines={"ready": build_ready},
        on_loaded=lambda started: print(f"port {started.grpc_port}", flush=True),
    )


if __name__ == "__main__":
    main()
