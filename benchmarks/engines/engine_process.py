"""An engine of Trivec in a worker process, without a server."""

import sys
from pathlib import Path

from benchmarks.engines.process import WorkerProcess
from benchmarks.engines.systems import DirectSystem
from benchmarks.engines.variants import Variant
from benchmarks.engines.weights import MAX_TOKENS

MAX_BATCH_SIZE = 64
"""Of the config.pbtxt that `trivec pull` writes."""


def open_engine(
    version: Path,
    variant: Variant,
    kind: str,
    log: Path,
    *,
    max_batch_size: int = MAX_BATCH_SIZE,
    device_memory_mb: int | None = None,
) -> DirectSystem:
    """
    Builds the variant's engine from a version's directory.

    Args:
        version: The directory with the model's files.
        variant: The engine and its precision.
        kind: `CPU` or `GPU`.
        log: Where the process writes.
        max_batch_size: The most texts in a batch.
        device_memory_mb: The most GPU memory to take; None: what is free.

    Raises:
        SystemFailed: it cannot be built; says why.
    """
    options = {
        "engine": variant.engine,
        "version": str(version),
        "kind": kind,
        "precision": variant.precision,
        "max_tokens": MAX_TOKENS,
        "max_batch_size": max_batch_size,
        "device_memory_mb": device_memory_mb,
    }
    process = WorkerProcess(Path(sys.executable), "benchmarks.engines.direct", options, log)
    return DirectSystem(process, half=kind == "GPU")
