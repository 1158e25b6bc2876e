"""The model repository of the nodes: a small model in two generations that give different numbers for the same text."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trivec_client import TrivecClient

from benchmarks.cluster.corpus import Corpus, make_calls, write_corpus
from benchmarks.cluster.nodes import Command, running_nodes
from tests.tiny_model import MAX_TOKENS, TinyShape, write_tiny_model

MODEL = "small"
GENERATIONS = {"first": 9, "second": 12}
"""Their names and the seeds of their weights, with which they pass a version's self-check."""
SHAPE = TinyShape(hidden=128, layers=4, intermediate=512)
"""About 4 ms for a call on one core: so that the nodes, and not what is before them, are what is busy."""
TEXTS_PER_CALL = 4
_TEXT_WORDS = 20
_WORDS = ("hello", "world", "the", *"abcdelor")
_ONE_THREAD = 'parameters {\n  key: "intra_op_threads"\n  value: { string_value: "1" }\n}\n'


class SmallModel:
    """
    The model in a folder: `repository` is what the nodes serve, `corpus` holds texts with each generation's answers.

    `version` is the newest one, of the generation `generation`.
    """

    def __init__(self, folder: Path) -> None:
        self._generations = folder / "generations"
        self._first = next(iter(GENERATIONS))
        self._folder = folder
        self.repository = folder / "models"
        self.corpus = folder / "corpus.npz"
        self.version = 0

    @property
    def generation(self) -> int:
        """Of the newest version."""
        return (self.version - 1) % len(GENERATIONS)

    def build(self) -> None:
        """Makes the generations, asks a server for their answers, and publishes the first one."""
        for generation, seed in GENERATIONS.items():
            checkpoint = self._folder / "checkpoints" / generation
            write_tiny_model(checkpoint, seed=seed, shape=SHAPE)
            _pull(checkpoint, self._generations, generation)
        calls = make_calls(_WORDS, TEXTS_PER_CALL, _TEXT_WORDS)
        with running_nodes(self._folder, serve_command(self._generations)) as (node,):
            dense = [_embed(node.target, generation, calls) for generation in GENERATIONS]
        corpus = Corpus(calls, np.stack(dense))
        corpus.check()
        write_corpus(self.corpus, corpus)
        model = self.repository / MODEL
        model.mkdir(parents=True)
        config = (self._generations / self._first / "config.pbtxt").read_text(encoding="utf-8")
        (model / "config.pbtxt").write_text(config.replace(f'name: "{self._first}"', f'name: "{MODEL}"'))
        self.publish()

    def publish(self) -> None:
        """Adds a version, of the other generation than the last one, in one step."""
        self.version += 1
        source = self._generations / tuple(GENERATIONS)[self.generation] / "1"
        staging = Path(tempfile.mkdtemp(prefix="staging-", dir=self._folder))
        staging.chmod(0o755)
        for file in source.iterdir():
            os.link(file, staging / file.name)
        staging.rename(self.repository / MODEL / str(self.version))


def serve_command(repository: Path, *flags: str) -> Command:
    """The command line of `trivec serve`."""

    def command(grpc_port: int, metrics_port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "trivec_server", "serve", "--model-repository", str(repository)),
            *("--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port), "--log-format", "json"),
            *flags,
        ]

    return command


def _pull(checkpoint: Path, repository: Path, name: str) -> None:
    command = [sys.executable, "-m", "trivec_server", "pull", str(checkpoint), "--model-repository", str(repository)]
    done = subprocess.run([*command, "--name", name], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    config = repository / name / "config.pbtxt"
    text = config.read_text(encoding="utf-8").replace('backend: "auto"', 'backend: "onnxruntime"')
    config.write_text(text + _ONE_THREAD, encoding="utf-8")


def _embed(target: str, model: str, calls: Sequence[list[str]]) -> NDArray[np.float32]:
    """[calls, texts of a call, D]."""
    with TrivecClient(target, model=model) as client:
        vectors = client.encode([text for texts in calls for text in texts], max_length=MAX_TOKENS)["dense_vecs"]
        assert vectors is not None
        return vectors.reshape(len(calls), -1, vectors.shape[-1])
