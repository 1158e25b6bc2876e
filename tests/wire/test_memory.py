"""What the served m3-mini takes of a machine's memory. `make bench-memory` measures more of it."""

from itertools import cycle, islice
from pathlib import Path

import psutil
import pytest
from trivec_client import TrivecClient

from tests.numerics.figures import show
from tests.serving_process import serve

LIMIT_MB = 700
LENGTHS = (2, 512, 17, 300, 64, 450, 5, 128, 512, 33)
WORDS = ("search", "模型", "Zug", "ciudad", "vectors", "人工智能", "noche", "weather")


def test_m3_mini_takes_at_most_700_mb_after_requests(
    mini_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(mini_repository, log_path=tmp_path / "log") as server, TrivecClient(server.target) as client:
        for length in LENGTHS:
            texts = [" ".join(islice(cycle(WORDS), start, start + length)) for start in range(4)]
            output = client.encode(texts, max_length=length, return_sparse=True, return_colbert_vecs=True)
            assert output["colbert_vecs"] is not None
            assert [len(rows) for rows in output["colbert_vecs"]] == [length - 1] * len(texts)
        rss_mb = psutil.Process(server.process.pid).memory_info().rss / 1e6
    show(capsys, f"m3-mini served: {rss_mb:.0f} MB, at most {LIMIT_MB}")
    assert rss_mb <= LIMIT_MB
