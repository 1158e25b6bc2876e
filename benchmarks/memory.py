"""
How much memory the server takes, and how long it takes to start: `trivec serve` in a process of its own, with m3-mini
and, with --full-size, with random weights in the shapes of BGE-M3. The last lines are `name value`; the exit code is 1
if a limit is passed.

    python -m benchmarks.memory --full-size
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil
from trivec_client import TrivecClient

from benchmarks.full_size_model import HIDDEN, MAX_TOKENS, write_full_size_model
from tests.serving_process import serve

LIMITS = {"mini_start_s": 5.0, "mini_rss_mb": 700.0, "full_size_rss_over_weights": 1.25}
"""The most that each of these may be."""

MINI_REQUESTS = 50
FULL_SIZE_LENGTHS = (2, 8, 32, 64, 128, 256, 384, 512)
_MB = 1e6
_GIB = 1 << 30
_DISK_BYTES = 7 * _GIB
_WORDS = ("search", "模型", "Zug", "ciudad", "vectors", "人工智能", "Bahnhof", "noche", "engine", "weather")


@dataclass(frozen=True, slots=True)
class Server:
    """A server whose models are loaded, and the seconds from its start to its greeting."""

    target: str
    pid: int
    start_s: float

    @property
    def rss_bytes(self) -> int:
        """The memory that it holds now, pages of mapped files included."""
        return psutil.Process(self.pid).memory_info().rss

    @property
    def anonymous_bytes(self) -> int:
        """The part of `rss_bytes` that is not pages of mapped files."""
        return self._status_bytes("RssAnon")

    @property
    def peak_rss_bytes(self) -> int:
        """The most that `rss_bytes` has been."""
        return self._status_bytes("VmHWM")

    def _status_bytes(self, field: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        (line,) = [line for line in lines if line.startswith(f"{field}:")]
        return int(line.split()[1]) * 1024


@contextmanager
def started(repository: Path) -> Iterator[Server]:
    """`trivec serve` until the block ends."""
    before = time.monotonic()
    with serve(repository) as server:
        yield Server(server.target, server.process.pid, time.monotonic() - before)


def make_text(tokens: int, start: int = 0) -> str:
    """A text of at least so many tokens, to be cut off there."""
    return " ".join(islice(cycle(_WORDS), start, start + tokens))


def embed(client: TrivecClient, length: int, texts: int = 1) -> None:
    """One hybrid request of texts with `length` tokens each. Fails if an answer lacks something."""
    output = client.encode(
        [make_text(length, start) for start in range(texts)],
        max_length=length,
        return_dense=True,
        return_sparse=True,
        return_colbert_vecs=True,
    )
    dense, weights, vectors = output["dense_vecs"], output["lexical_weights"], output["colbert_vecs"]
    assert dense is not None
    assert weights is not None
    assert vectors is not None
    assert [len(rows) for rows in vectors] == [length - 1] * texts
    assert len(dense) == len(weights) == texts


def pull(source: str, repository: Path) -> None:
    """`trivec pull`, as a user runs it."""
    command = [sys.executable, "-m", "trivec_server", "pull", source, "--model-repository", str(repository)]
    subprocess.run(command, check=True)


def measure_mini(repository: Path) -> dict[str, float]:
    """m3-mini: started a second time, loaded, and after requests of 1 to 4 texts with 2 to 512 tokens."""
    pull("m3-mini", repository)
    with started(repository):
        pass
    random = np.random.default_rng(3)
    with started(repository) as server, TrivecClient(server.target) as client:
        loaded = server.rss_bytes
        for _ in range(MINI_REQUESTS):
            embed(client, int(random.integers(2, 513)), int(random.integers(1, 5)))
        print(f"m3-mini: {server.anonymous_bytes / _MB:.0f} MB of its memory are not pages of files")
        return {
            "mini_start_s": server.start_s,
            "mini_rss_after_load_mb": loaded / _MB,
            "mini_rss_mb": server.rss_bytes / _MB,
            "mini_peak_rss_mb": server.peak_rss_bytes / _MB,
        }


def measure_full_size(directory: Path) -> dict[str, float]:
    """The shapes of BGE-M3, in float32: loaded, after requests up to 512 tokens, and after a text of 8192."""
    free = psutil.disk_usage(str(directory)).free
    if free < _DISK_BYTES:
        raise SystemExit(f"{directory} has {free / _GIB:.1f} GiB free and 7 GiB are needed: set TMPDIR to another disk")
    source, repository = directory / "full-size", directory / "repository"
    source.mkdir()
    print(f"writing random weights to {source}", flush=True)
    write_full_size_model(source)
    pull(str(source), repository)
    weights = (repository / "full-size" / "1" / "model.onnx.data").stat().st_size
    print(f"full size: {weights / _MB:.0f} MB of weights", flush=True)
    with started(repository) as server, TrivecClient(server.target) as client:
        figures = {"full_size_load_s": server.start_s, "full_size_rss_over_weights": server.rss_bytes / weights}
        figures["full_size_anonymous_over_weights"] = server.anonymous_bytes / weights
        figures["full_size_load_peak_over_weights"] = server.peak_rss_bytes / weights
        for length in FULL_SIZE_LENGTHS:
            embed(client, length)
        figures["full_size_rss_after_requests_over_weights"] = server.rss_bytes / weights
        figures["full_size_8192_tokens_s"] = embed_longest(client)
        figures["full_size_rss_after_8192_over_weights"] = server.rss_bytes / weights
        figures["full_size_peak_rss_over_weights"] = server.peak_rss_bytes / weights
        return figures


def embed_longest(client: TrivecClient) -> float:
    """One text of 8192 tokens in all modes over EmbedStream; returns the seconds."""
    before = time.monotonic()
    (embedding,) = client.encode_stream(
        [make_text(MAX_TOKENS)], max_length=MAX_TOKENS, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )
    assert embedding.token_count == MAX_TOKENS
    assert embedding.dense is not None
    assert embedding.dense.shape == (HIDDEN,)
    assert embedding.sparse is not None
    assert len(embedding.sparse.ids)
    assert embedding.multi_vector is not None
    assert embedding.multi_vector.shape == (MAX_TOKENS - 1, HIDDEN)
    return time.monotonic() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--full-size", action="store_true", help="also BGE-M3's shapes: 7 GB of disk, some minutes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trivec-memory-") as directory:
        figures = measure_mini(Path(directory) / "mini")
        if arguments.full_size:
            figures |= measure_full_size(Path(directory))
    missed = [name for name, limit in LIMITS.items() if figures.get(name, 0.0) > limit]
    for name in missed:
        print(f"MISSED: {name} is {figures[name]:.3f}, at most {LIMITS[name]:g} is wanted")
    for name, value in figures.items():
        print(f"{name} {value:.3f}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
